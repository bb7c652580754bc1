# ruff: noqa: E501 - a line is an expression
"""What the lead of an encyclopaedia page says about its subject: one table of expressions, the value in group `v`.

They are matched only against sentences about the page's subject, so that they need not contain a verb's subject.
"""

from __future__ import annotations

import re

from training.texts import DATE, DAY, MONTH, NUMBER, PERSON, PLACE, THING, UPPER, WORD, YEAR

NATIONS = (
    "American|British|English|Scottish|Welsh|Irish|Northern Irish|Canadian|Australian|New Zealand|Indian|Pakistani|"
    "Bangladeshi|Sri Lankan|Nepalese|Nepali|Chinese|Hong Kong|Taiwanese|Japanese|South Korean|North Korean|Korean|"
    "Vietnamese|Thai|Filipino|Indonesian|Malaysian|Singaporean|Burmese|Cambodian|Mongolian|Iranian|Iraqi|Israeli|"
    "Palestinian|Lebanese|Syrian|Jordanian|Saudi Arabian|Saudi|Emirati|Kuwaiti|Qatari|Turkish|Armenian|Azerbaijani|"
    "Georgian|Kazakhstani|Kazakh|Uzbek|Uzbekistani|Russian|Soviet|Ukrainian|Belarusian|Polish|Czech|Czechoslovak|"
    "Slovak|Slovakian|Hungarian|Romanian|Moldovan|Bulgarian|Greek|Cypriot|Albanian|Macedonian|Serbian|Montenegrin|"
    "Kosovar|Bosnian|Croatian|Slovenian|Slovene|Yugoslav|Austrian|German|East German|West German|Swiss|French|Belgian|"
    "Dutch|Luxembourgish|Danish|Norwegian|Swedish|Finnish|Icelandic|Estonian|Latvian|Lithuanian|Spanish|Portuguese|"
    "Italian|Maltese|Mexican|Guatemalan|Honduran|Salvadoran|Nicaraguan|Costa Rican|Panamanian|Cuban|Jamaican|Haitian|"
    "Dominican|Puerto Rican|Trinidadian|Barbadian|Bahamian|Guyanese|Colombian|Venezuelan|Ecuadorian|Peruvian|Bolivian|"
    "Chilean|Argentine|Argentinian|Uruguayan|Paraguayan|Brazilian|Egyptian|Libyan|Tunisian|Algerian|Moroccan|Sudanese|"
    "Ethiopian|Eritrean|Somali|Kenyan|Ugandan|Tanzanian|Rwandan|Congolese|Angolan|Zambian|Zimbabwean|Mozambican|"
    "Namibian|Botswana|South African|Nigerian|Ghanaian|Ivorian|Senegalese|Malian|Cameroonian|Gabonese|Liberian|"
    "Sierra Leonean|Gambian|Guinean|Togolese|Beninese|Malagasy|Mauritian|Fijian|Samoan|Tongan|Papua New Guinean"
)
NATION = rf"(?:(?:{NATIONS})(?:[- ]born)?(?:[- ](?:{NATIONS})\b)?)"
KINDS = (
    "film|movie|album|EP|song|single|novel|book|series|sitcom|play|opera|musical|magazine|newspaper|journal|band|"
    "group|company|club|team|school|college|university|city|town|village|commune|municipality|county|district|"
    "community|river|lake|mountain|island|stadium|arena|building|church|museum|hospital|airport|station|bridge|road|"
    "highway|species|genus|video game|game|award|tournament|competition|league|party|organization|organisation|"
    "episode|documentary|soundtrack|ship|battle|war|software|program|language|festival|season"
)
_OF = r"(?: of (?:the )?| for (?:the )?| at (?:the )?| in (?:the )?)"
_FOUND = r"(?:founded|established|formed|created|incorporated|inaugurated|started|set up|organi[sz]ed|launched)"
_OUT = r"(?:released|published|issued|premiered|debuted|came out|first aired|aired)"
_ROLE = (
    "President|Prime Minister|Governor|Mayor|Senator|Minister|Secretary|Chancellor|Bishop|Archbishop|Chief Justice|"
    "Speaker|Attorney General|Ambassador|Commissioner|Vice President|Director|Chairman|Lieutenant Governor"
)

_TABLE: dict[str, tuple[str, ...]] = {
    "born": (rf"\b[Bb]orn (?:[^().;]{{0,60}}?\b(?:on|in) )?(?P<v>{DATE})",),
    "birthplace": (
        rf"\b[Bb]orn (?:and (?:raised|brought up|educated) )?(?:on {DAY},? |in {DATE},? )?(?:in|at) (?P<v>{PLACE})",
        rf"\b[Bb]orn (?:in |on )?{DATE},? (?:in|at) (?P<v>{PLACE})",
        rf"\b(?:is a )?native of (?P<v>{PLACE})",
    ),
    "died": (rf"\b(?:died|was killed|passed away|was executed) (?:[^.;]{{0,50}}?\b(?:on|in) )(?P<v>{DATE})",),
    "deathplace": (rf"\bdied (?:[^.;]{{0,40}}?)\b(?:in|at) (?P<v>(?!{MONTH}){PLACE})",),
    "director": (
        rf"\bdirected by (?P<v>{PERSON})",
        rf"\b(?:written|produced|edited|created)(?:,? (?:and )?\w+)* and directed by (?P<v>{PERSON})",
        rf"\bdirected (?:and|,) (?:co-)?(?:written|produced|edited|scripted)[^.;]{{0,20}} by (?P<v>{PERSON})",
        rf"\b(?P<v>{PERSON}) (?:wrote and )?directed the (?:film|movie)",
    ),
    "producer": (rf"\b(?:co-)?produced(?: and \w+)? by (?P<v>{PERSON})",),
    "author": (
        rf"\b(?:written|authored|penned|co-written|composed)(?: and \w+)? by (?:\w+ ){{0,3}}(?P<v>{PERSON})",
        rf"\b(?:novel|book|novella|play|short story|poem|memoir|collection) (?:written )?by (?:[\w-]+ ){{0,4}}?(?P<v>{PERSON})",
    ),
    "starring": (
        rf"\b(?:starring|stars|starred|featuring the voice of) (?P<v>{PERSON})",
        rf"\bstarring {PERSON}(?:, {PERSON})*,? and (?P<v>{PERSON})",
    ),
    "released": (
        rf"\b{_OUT}\b(?: (?!by)[\w-]+){{0,6}}? (?:on|in) (?P<v>{DATE})",
        rf"\b(?:is|was) an? (?P<v>{YEAR}) (?=[^.,;]{{0,60}}\b(?:film|album|movie|novel|song|documentary|game|book|miniseries))",
    ),
    "performer": (
        rf"\b(?:album|EP|song|single|soundtrack|mixtape|record|ballad|duet|instrumental|hit)\b(?: (?:recorded|performed|released|written and recorded|sung))? by (?:(?:the )?[\w&-]+ )*?(?:(?:band|singer|rapper|group|artist|duo|musician|songwriter|singer-songwriter|rock band|guitarist|trio|producer|DJ|pianist|entertainer)s? )?(?P<v>(?:[Tt]he )?(?!{NATION}\b){THING})(?=[,.; ](?!and\b))",
        rf"\b(?:recorded|performed|sung) by (?:(?:the )?[a-z&-]+ ){{0,4}}(?P<v>(?!{NATION}\b){THING})",
    ),
    "label": (
        rf"\b(?:through|by|via|on|under|for|from)(?: the)?(?: record)?(?: label)? (?P<v>{THING} (?:Records|Recordings|Entertainment|Music Group|Music)\b)",
        rf"\bsigned (?:to|with) (?P<v>{THING} Records)",
    ),
    "founded": (
        rf"\b{_FOUND}(?: [\w-]+){{0,5}}? (?:in|on) (?:early |late )?(?P<v>{DATE})",
        rf"\b[Ff]ounded(?: by {PERSON})?,? in (?P<v>{DATE})",
    ),
    "founder": (rf"\b(?:co-)?(?:founded|established|created|formed|started)(?: (?:in|on) {DATE})? by (?P<v>{PERSON})",),
    "opened": (
        rf"\bopened (?:[\w' -]{{0,40}}?)(?:in|on) (?P<v>{DATE})",
        rf"\b(?:built|constructed|completed|erected)(?: (?!by)[\w-]+){{0,4}}? (?:in|on) (?P<v>{DATE})",
    ),
    "architect": (rf"\b(?:designed|built) (?:in \d{{4}} )?by (?:(?:the )?(?:\w+ )?architects? )?(?P<v>{PERSON})",),
    "headquarters": (
        rf"\b(?:headquartered|based)(?: out of| at| in) (?P<v>{PLACE})",
        rf"\b[Hh]eadquarters (?:is|are|was|were)(?: located)? (?:in|at) (?P<v>{PLACE})",
    ),
    "located": (
        rf"\b(?:located|situated|lies|sits) (?:[\w-]+ )?(?:in|at|near|on) (?:the (?:town|city|village|state|heart|center|centre) of )?(?:the )?(?P<v>{PLACE})",
        rf"\b(?:is|was) (?:an?|the) (?:[\w-]+ ){{1,5}}?in (?:the (?:(?:\w+ )?(?:county|province|district|state|municipality|region|city|town|department) of )?)?(?P<v>{PLACE})",
    ),
    "county": (
        rf"\bin (?:the )?(?P<v>{WORD}(?: {WORD})? (?:County|Parish))\b",
        rf"\bin (?P<v>County {WORD})\b",
        rf"\bcounty seat of (?P<v>{THING} County)",
    ),
    "district": (
        rf"\bin (?:the )?(?P<v>(?!(?:{NATIONS}) )(?:{WORD}(?: {WORD})?) (?:District|Province|Prefecture|Voivodeship|Oblast|Municipality|Region|department|province|district|canton))\b",
        rf"\bin the (?:province|district|department|municipality|canton|region) of (?P<v>{WORD}(?: {WORD})?)",
    ),
    "country": (
        r"\bin (?:[\w' -]+, ){0,3}(?:(?:\w+ ){1,3})?(?<!New )(?P<v>United States|England|Scotland|Wales|Ireland|France|Germany|Italy|Spain|Portugal|Poland|Russia|Ukraine|India|Pakistan|Iran|Turkey|China|Japan|South Korea|Indonesia|Malaysia|Thailand|Vietnam|Philippines|Australia|Canada|Mexico|Brazil|Argentina|Chile|Peru|Colombia|Egypt|Nigeria|Ghana|Kenya|South Africa|Sweden|Norway|Denmark|Finland|Switzerland|Austria|Belgium|Netherlands|Greece|Romania|Bulgaria|Hungary|Czech Republic|Serbia|Croatia|Israel|Estonia|Latvia|Lithuania|Iceland|Nepal|Sri Lanka|Bangladesh|Afghanistan|Iraq|Syria|Cuba|Jamaica)(?=[.,;]|$| (?!City|Kingdom|National))",
    ),
    "capital": (
        rf"\b(?:[Ii]ts|[Tt]he) (?:\w+ )?(?:capital|county seat|seat)(?: city| and largest city)? (?:is|was) (?P<v>{PLACE})",
    ),
    "capital_of": (
        rf"\b(?:is|was) (?:also )?the (?:administrative )?(?:capital|county seat|capital and largest city)(?: and [\w ]+)? of (?:the )?(?P<v>{THING})",
    ),
    "population": (
        rf"\bpopulation (?:was|is|of|stood at|being)(?: (?:about|approximately|around|some|over|nearly|estimated at))*? (?P<v>{NUMBER}(?: million| billion)?)",
        rf"\b(?:had|has|with) (?:an? )?(?:\w+ ){{0,3}}population (?:of|was)(?: (?:about|approximately|around|over|nearly|just over))? (?P<v>{NUMBER}(?: million)?)",
        rf"\b(?P<v>{NUMBER}) (?:inhabitants|residents)\b",
    ),
    "area": (
        rf"\barea (?:of|is|was)(?: (?:about|approximately|around|over))? (?P<v>{NUMBER} (?:square (?:kilomet(?:er|re)s|miles)|km2|km²|ha|hectares|acres))",
    ),
    "length": (
        rf"\b(?P<v>{NUMBER}[- ](?:km|kilomet(?:er|re)s?|mi|miles?))(?: \([^)]*\))?[- ](?:long|in length)",
        rf"\b(?:length of|total length of)(?: (?:about|approximately))? (?P<v>{NUMBER} (?:km|kilomet(?:er|re)s|miles|mi))",
    ),
    "height": (
        rf"\b(?P<v>{NUMBER}[- ](?:m|met(?:er|re)s?|feet|foot|ft))(?: \([^)]*\))?[- ](?:tall|high)\b",
        rf"\b(?:elevation|height|altitude) (?:of|is)(?: (?:about|approximately|around))? (?P<v>{NUMBER} (?:m|met(?:er|re)s|feet|ft))\b",
    ),
    "seats": (
        rf"\b(?P<v>{NUMBER})[- ]seat\b",
        rf"\b(?:capacity|seating capacity) (?:of|is|was)(?: (?:about|approximately|around|over))? (?P<v>{NUMBER})",
        rf"\b(?:holds|seats)(?: (?:about|up to|around))? (?P<v>{NUMBER})",
    ),
    "tributary": (rf"\btributary of (?:the )?(?P<v>{THING})", rf"\bflows into (?:the )?(?P<v>{THING})"),
    "spouse": (
        rf"\b(?:is|was|has been|got) married to (?:[a-z]+ ){{0,4}}(?P<v>{PERSON})",
        rf"\b(?:He|She) (?:\w+ )?married (?:[a-z]+ ){{0,4}}(?P<v>{PERSON})",
        rf"\b(?:wife|husband|widow|spouse) of (?:(?:the )?[\w-]+ ){{0,4}}?(?P<v>{PERSON})",
        rf"\b[Hh](?:is|er) (?:\w+ )?(?:wife|husband)(?:,| is| was) (?P<v>{PERSON})",
    ),
    "father": (
        rf"\b(?:eldest |second |third |youngest |only |elder |younger |illegitimate )?(?:son|daughter|child) of (?:(?:the )?[a-z-]+ ){{0,4}}(?P<v>(?:{WORD} )?{PERSON})",
        rf"\b[Hh](?:is|er) father(?:,| is| was) (?P<v>{PERSON})",
    ),
    "mother": (
        rf"\b[Hh](?:is|er) mother(?:,| is| was) (?P<v>{PERSON})",
        rf"\b(?:son|daughter|child) of (?:[\w-]+ ){{0,3}}?{PERSON} and (?:his wife,? |the [a-z]+ )?(?P<v>{PERSON})",
    ),
    "child": (rf"\b(?:father|mother) of (?:[a-z-]+ ){{0,4}}(?P<v>{PERSON})",),
    "sibling": (rf"\b(?:brother|sister|twin) of (?:[a-z-]+ ){{0,4}}(?P<v>{PERSON})",),
    "team": (
        rf"\b(?:plays|played|who currently plays)(?: (?:as|at) (?:an? )?[\w -]+?)? (?:for|with) (?:[a-z-]+ ){{0,4}}?(?P<v>{THING}?)(?= of the|[^\w ]| (?!teams|of|{UPPER})|$)",
        rf"\b(?:head coach|manager|coach|captain) (?:of|for|at) (?:the )?(?P<v>{THING})",
    ),
    "position": (
        r"\bplay(?:s|ed|ing) (?:primarily |mainly |mostly )?as an? (?P<v>[a-z][a-z -]+?)(?=[.,;]| (?:for|with|in|at|and|on|who)\b)",
        r"\b(?:is|was) an? [\w -]*?(?P<v>goalkeeper|midfielder|striker|centre-back|right-back|left-back|quarterback|linebacker|wide receiver|running back|shortstop|outfielder|infielder|third baseman|first baseman|second baseman|pitcher|catcher|goaltender|defenseman|defenceman|winger|forward|defender|point guard|shooting guard|fullback|tight end|cornerback|safety)\b",
    ),
    "league": (
        rf"\b(?:plays|play|competes|compete|competing|playing|played|participates|competed)(?: \w+)? in (?:the )?(?P<v>{THING})(?![\w'’]|, {UPPER}| Arena| [\d])",
        rf"\bmembers? of the (?P<v>{THING} (?:League|Conference|Association|Division))",
    ),
    "university": (
        rf"\b(?:attended|graduated from|studied at|educated at|graduate of|alumnus of|degree from|studied \w+ at|played college \w+ (?:at|for))(?: the)? (?P<v>(?!\d){THING})",
    ),
    "award": (
        rf"\b(?:won|received|awarded|recipient of|earned|was given)(?: (?:an?|the|her|his|its|\w+))? (?P<v>(?:\d{{4}} )?{THING} (?:Awards?|Prize|Medal|Trophy|Grammy|Emmy)\b(?: for Best(?: {WORD})+)?)",
    ),
    "named_after": (rf"\bnamed (?:after|for|in honou?r of) (?:(?:the )?[a-z-]+ ){{0,4}}(?P<v>(?:the )?{THING})",),
    "owner": (rf"\bowned(?: and operated)? by (?:the )?(?P<v>{THING})",),
    "operator": (rf"\b(?:operated|run|managed|administered|maintained) by (?:the )?(?P<v>{THING})",),
    "developer": (rf"\bdeveloped(?: and published)? by (?P<v>{THING})",),
    "publisher": (rf"\bpublished by (?P<v>(?:the )?{THING})",),
    "distributor": (rf"\bdistributed by (?P<v>{THING})",),
    "manufacturer": (rf"\b(?:manufactured|produced|built|made) by (?:the )?(?:[a-z-]+ ){{0,3}}(?P<v>{THING})",),
    "network": (
        rf"\b(?:aired|airs|broadcast|premiered|televised|shown)(?: (?!in)\w+){{0,2}} (?:on|by) (?P<v>(?!{MONTH}){THING})",
    ),
    "based_on": (
        rf"\bbased (?:up)?on (?:the )?(?:[\w-]+ ){{0,3}}?(?:novel|book|play|story|comic|manga|memoir) (?:of the same name )?(?:by (?P<v>{PERSON}))",
    ),
    "family": (
        rf"\bin the (?:[a-z-]+ )?(?P<v>(?:[a-z-]+ )?famil(?:y|ies) {WORD}|{WORD} family|{WORD}) (?=family|genus|\(|\.|,)",
    ),
    "genus": (rf"\b(?:in|of) the genus (?P<v>{WORD})",),
    "native_to": (
        rf"\b(?:native|endemic|indigenous) to (?P<v>(?:(?:the|southern|northern|eastern|western|central|southeastern|southwestern|northwestern|northeastern|tropical|temperate) )*{THING}(?: and (?:the )?{THING})?)",
    ),
    "found_in": (
        rf"\bfound (?:only )?in (?P<v>(?:(?:the|southern|northern|eastern|western|central) )*{THING}(?: and (?:the )?{THING})?)",
    ),
    "party": (
        rf"\bmember of (?:the )?(?P<v>{THING} [Pp]arty(?: of {WORD})?)",
        r"\b(?:a|the) (?P<v>Republican|Democrat|Democratic|Conservative|Labour|Liberal)(?= (?:member|politician|from|who|and))",
    ),
    "office": (
        rf"\b(?:served|serving|serves|elected|appointed)(?: \w+)? as (?:the |an? )?(?P<v>(?:\w+ )?(?:{_ROLE}){_OF}{THING})",
        rf"\b(?:is|was) the (?:current |former )?(?P<v>(?:\w+ )?(?:{_ROLE}){_OF}{THING})",
    ),
    "language": (
        r"\b(?:is|was) an? (?:\d{4} )?(?:[A-Z][\w-]+ )?(?P<v>Hindi|Tamil|Telugu|Malayalam|Kannada|Bengali|Marathi|Punjabi|Urdu|French|German|Spanish|Japanese|Korean|Mandarin|English|Italian|Russian|Swedish|Danish)-language\b",
    ),
    "held": (
        rf"\b(?:held|played|fought|took place|contested|occurred|staged)(?: (?!by)[\w',-]+){{0,7}}? (?:on|in|between|from) (?P<v>{DATE})",
    ),
    "venue": (
        rf"\b(?:held|took place|played|hosted|staged|fought)(?: (?:on|from|between) [\w ,-]+?)? (?:at|in) (?:the )?(?P<v>(?!{MONTH}){PLACE})",
    ),
    "winner": (
        rf"\bwon by (?:(?:the )?[a-z-]+ )?(?P<v>{THING})",
        rf"\b(?P<v>{PERSON}) (?:won|defeated|beat) (?:the (?:final|title|race|tournament|championship|election|event)|{PERSON})",
    ),
    "host": (rf"\b(?:hosted|presented|moderated) by (?P<v>{PERSON})",),
    "season_number": (
        r"\bthe (?:[\w' ]+ )?(?P<v>\d+(?:st|nd|rd|th)|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)(?: (?:season|edition|staging|running|annual|series))",
    ),
    "known_for": (
        rf"\b(?:best |widely |mostly |primarily |well )?known for (?:his |her |their |its )?(?P<v>(?:(?:role|work|portrayal|performance|part)s?(?: (?:of|as|in|on|with))+ )?(?:the )?(?:[a-z-]+ ){{0,3}}{THING}(?: (?:in|on) (?:the )?{THING})?)",
    ),
    "also_known": (
        rf"\b(?:also|better|formerly|commonly|professionally|previously|locally|originally)(?: \w+)? (?:known|called|named|titled)(?: \w+)? (?:as |by (?:his|her|their|the) (?:\w+ )?name )?(?P<v>(?:the |The )?{THING})",
    ),
    "genre_album": (
        r"\b(?:is|was|as) (?:the|an?|her|his|their) (?:[\w' -]+ )?(?P<v>debut|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)(?= (?:studio )?(?:album|single|EP)\b)",
    ),
    "composer": (rf"\b(?:music|score|soundtrack)(?: \w+)? (?:is |was )?(?:composed )?by (?P<v>{PERSON})",),
    "enrollment": (
        rf"\b(?:enrollment|enrolment|student body) (?:of|is|was)(?: (?:about|approximately|over|around|nearly))? (?P<v>{NUMBER})",
    ),
    "members": (
        rf"\b(?:band|group|duo|trio|quartet)(?: \w+)? (?:consists|consisted|composed|consisting|comprised|made up) of (?:[a-z-]+ ){{0,3}}(?P<v>{PERSON})",
    ),
    "debut": (rf"\bmade (?:his|her|their) (?:[\w' -]+ )?debut (?:[\w' -]+ )?(?:in|on) (?P<v>{DATE})",),
    "character": (
        rf"\b(?:in the role|as the character|the role|the character|portrayal) of (?:[a-z-]+ ){{0,3}}(?P<v>{PERSON})",
    ),
    "parent_company": (
        rf"\b(?:is|was|are|were|as|forms|became)(?: an?)?(?: [a-z-]+)? (?:subsidiary|division|imprint|unit|part) of (?:the )?(?P<v>{THING})",
    ),
    "register": (
        rf"\b(?:listed|added|placed)(?: \w+)? (?:on|to) the (?:U\.S\. )?National Register of Historic Places (?:in|on) (?P<v>{DATE})",
    ),
    "cause": (r"\bdied of (?:an? )?(?P<v>[a-z]+(?: [a-z]+)?)(?= (?:in|at|on)\b|[.,])",),
}

PATTERNS: dict[str, tuple[re.Pattern[str], ...]] = {
    relation: tuple(re.compile(pattern) for pattern in patterns) for relation, patterns in _TABLE.items()
}
