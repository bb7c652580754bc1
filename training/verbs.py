"""Verbs of encyclopaedias: past forms with their base forms, since questions with "did" use the base form."""

from __future__ import annotations

_IRREGULAR = (
    "became become/began begin/won win/wrote write/led lead/held hold/made make/took take/gave give/left leave/"
    "went go/came come/met meet/built build/sold sell/bought buy/lost lose/beat beat/ran run/rose rise/fell fall/"
    "fought fight/found find/grew grow/had have/kept keep/knew know/sang sing/saw see/set set/shot shoot/spent spend/"
    "stood stand/taught teach/brought bring/broke break/chose choose/drew draw/drove drive/flew fly/got get/hit hit/"
    "put put/sent send/spoke speak/sought seek/underwent undergo/overcame overcome/rebuilt rebuild/struck strike/"
    "withdrew withdraw/threw throw/swam swim/rode ride/wore wear/lay lie/laid lay/cost cost/cut cut/read read/"
    "retook retake/oversaw oversee/forced force"
)
_E = (
    "released produced moved served received married died retired graduated created based introduced continued "
    "debuted_ changed closed competed coached recorded_ resigned_ merged achieved announced_ acquired co-produced "
    "invaded divided_ defined included escaped arrived acted_ voiced hosted_ captured scored named raised replaced "
    "invented_ composed described designed_ discovered_ issued inspired managed measured_ observed operated organized "
    "organised purchased placed ranked_ reduced required resided restored revived secured separated settled_ shared "
    "staged survived toured_ united  valued voted wrestled charted_ celebrated collaborated contributed_ "
    "co-founded_ commenced comprised concluded conceived confirmed_ contained_ converted_ dated declared decided "
    "dedicated_ defeated_ demonstrated departed_ deployed_ diagnosed encouraged engaged enrolled_ established_ "
    "evolved executed_ explored expired featured forced illustrated imposed improved increased initiated involved "
    "joined_ launched_ located licensed narrated nominated noted_ opposed originated participated performed_ "
    "practiced premiered_ prepared proposed provided promised pursued qualified_ realised realized relocated "
    "renamed requested_ rescued reached_ revealed_ ruled saved seized served solved specialised specialized starred_ "
    "stated studied_ surpassed_ surprised terminated translated_ traveled_ upgraded welcomed_ ceased advised "
    "advanced emerged emigrated immigrated migrated liked lived loved damaged danced dominated donated displaced "
    "enjoyed_ ensured expanded_ explored influenced integrated investigated isolated judged_ negotiated "
    "occupied_ overtook_ pioneered_ rejoined_ reissued reproduced reunited sacrificed sampled_ skated smoked "
    "sponsored_ struggled submitted_ supervised televised"
)
_DOUBLED = "stopped planned dropped submitted committed admitted transferred referred occurred permitted shipped rammed"


def _base(past: str) -> str:
    if past.endswith("ied"):
        return past[:-3] + ("ie" if past in ("died", "tied", "lied") else "y")
    if past in _DOUBLED.split():
        return past[:-3]
    return past[:-1] if past in _E.split() else past[:-2]


_REGULAR = (
    "joined signed played appeared attended started finished ended earned defeated opened crossed launched performed "
    "recorded premiered toured visited returned turned worked helped formed founded established developed directed "
    "starred published presented presented represented reached topped peaked charted lasted killed attacked "
    "destroyed entered gained granted passed elected appointed adopted added allowed assisted awarded broadcasted "
    "collected commanded completed conducted constructed contested converted covered debuted designed discovered "
    "drafted edited employed expanded expressed extended followed gathered headed hosted invented invited issued "
    "landed limited linked lowered mentioned obtained offered ordered owned painted pioneered pitched portrayed "
    "promoted protected rejected remained renovated reported resulted resigned resumed retained rushed searched "
    "selected showed shifted sponsored succeeded suffered supported surrendered targeted trained translated "
    "traveled travelled treated tried turned won carried studied applied married occupied qualified died co-founded "
    "founded ranked measured tested called asked aired campaigned stopped planned dropped submitted committed "
    "transferred occurred assumed believed borrowed contained deployed discussed enrolled feared fielded filed filled"
)
BASES: dict[str, str] = dict(pair.split() for pair in _IRREGULAR.split("/"))
for _word in (*(word for word in _E.split() if not word.endswith("_")), *_REGULAR.split()):
    BASES.setdefault(_word, _base(_word))
_NOW = (
    "plays play/contains contain/features feature/operates operate/runs run/serves serve/flows flow/lies lie/has have/"
    "borders border/covers cover/hosts host/offers offer/provides provide/competes compete/teaches teach/lives live/"
    "works work/produces produce/includes include/represents represent/connects connect/crosses cross/employs employ/"
    "owns own/uses use/stars star/follows follow/tells tell/holds hold/consists consist/belongs belong/begins begin/"
    "ends end/takes take/rises rise/sits sit/stands stand/houses house/publishes publish/manages manage/forms form/"
    "receives receive/occurs occur/grows grow/feeds feed/ranges range/reaches reach/joins join/passes pass/"
    "resides reside/writes write/broadcasts broadcast/airs air/appears appear/describes describe/contests contest/"
    "focuses focus/specializes specialize/comprises comprise/leads lead/shares share/supports support/"
    "extends extend/enters enter/derives derive/comes come/requires require/seats seat/meets meet/drains drain"
)
PRESENT: dict[str, str] = dict(pair.split() for pair in _NOW.split("/"))
_PERFECT = (
    "written wrote/given gave/taken took/chosen chose/driven drove/sung sang/drawn drew/begun began/shown showed/"
    "beaten beat/flown flew/broken broke/run ran/worn wore/thrown threw/rewritten rewrote/overseen oversaw/seen saw"
)
PAST: dict[str, str] = dict(pair.split() for pair in _PERFECT.split("/"))  # where it is not the participle
