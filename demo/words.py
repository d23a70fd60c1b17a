"""Words to build people from, separated by commas.

The syllables of names and towns are made up; a name that somebody bears would be chance.
"""

FIRST_NAME_STARTS = "Ab,Bri,Cal,Do,Eri,Fen,Gal,Hes,Ivo,Jor,Kel,Lum,Mir,Nol,Ost,Pel,Quen,Ros,Sil,Tav,Ul,Vem,Wil,Yar,Zo"
FIRST_NAME_MIDDLES = "da,bel,ni,ro,vi,lo,mar,tes,ke,sha"
FIRST_NAME_ENDS = "n,s,th,ra,lin,va,dor,mi,ne,ka"
SURNAME_STARTS = (
    "Ash,Brim,Crow,Dun,Elder,Fallow,Grim,Hollow,Iron,Juniper,Kestrel,Lark,Moss,Nettle,Otter,Quill,Rook,Thorn"
)
SURNAME_ENDS = "by,croft,dale,ford,garth,ley,mere,stow,wick,worth"
STREETS = "Alley,Court,Lane,Row,Square,Street"
TOWN_STARTS = "Arv,Bel,Cors,Dral,Esk,Fjol,Gry,Holt,Imb,Krun,Lav,Mork,Nesk,Olm,Prav,Quist,Rund,Skel,Trov,Vald"
TOWN_ENDS = "aholm,avar,enna,eport,imouth,ogard,ostad,unda,usk,ytown"
TRADES = (
    "baking,beekeeping,bookbinding,carpentry,clockmaking,coopering,dyeing,engraving,fishing,gardening,glassblowing,"
    "hat making,jewellery,joinery,lace making,masonry,milling,pottery,printing,ropemaking,saddlery,sailmaking,"
    "spinning,tailoring,tanning,thatching,weaving"
)
INSTRUMENTS = (
    "bassoon,bugle,cello,clarinet,cornet,dulcimer,fiddle,flute,glass harp,guitar,hurdy-gurdy,lute,lyre,mandolin,"
    "piccolo,spinet,trombone,viola,zither"
)
ADJECTIVES = (
    "Amber,Borrowed,Broken,Crooked,Drowned,Empty,Folded,Frozen,Gilded,Hidden,Hungry,Last,Painted,Paper,Patient,Quiet,"
    "Rusty,Salted,Second,Silver,Sleeping,Stolen,Twisted,Velvet,Wandering,Wooden"
)
NOUNS = (
    "Anchor,Bridge,Button,Candle,Compass,Feather,Garden,Hammer,Harbour,Kettle,Ladder,Lantern,Meadow,Mirror,Orchard,"
    "Pepper,Pigeon,Quarry,River,Saddle,Staircase,Teapot,Tower,Umbrella,Violet,Winter"
)
ANIMALS = "badger,crane,donkey,ferret,goose,hedgehog,jackdaw,magpie,mole,newt,pony,raven,tortoise,weasel"
PET_NAME_STARTS = "Bim,Cob,Dax,Fip,Gus,Hob,Jip,Kip,Mop,Nib,Pog,Rum,Tig,Wob,Zaz"
PET_NAME_ENDS = "bo,do,ka,le,lo,mi,nus,per,ster,ty"
