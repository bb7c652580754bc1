# ruff: noqa: E501 - a line is an expression
"""Shapes of statements that can be asked about, and of what is asked for in them."""

from __future__ import annotations

import re

from training.relations import KINDS
from training.texts import DATE, MONTH, PERSON, PLACE, THING
from training.verbs import BASES, PRESENT

BRACKETS = re.compile(r" ?[(\[][^()\[\]]*[)\]]")
FRONT = re.compile(
    rf"(?P<prep>In|On|By|During|Since) (?P<when>(?:the )?(?:early |late |mid-)?(?:{DATE}|\d{{4}}s)),? (?P<rest>.+)"
)
PRONOUN = re.compile(rf"(?:He|She|It|They|he|she|it|they|[Tt]he (?P<kind>{KINDS}|building|group))$")
NO_SUBJECT = (
    "Although|After|While|When|As|In|With|During|From|Since|Before|At|On|For|By|To|If|Though|Because|Following|Despite|"
    "Upon|Under|Where|This|That|These|Those|There|Both|Some|Many|Most|Other|Each|All|Another|However|Also|Then|Until|"
    "His|Her|Its|Their|Among|Around|About|Between|Like|Unlike|Along|Including|Originally|Currently|According"
)
SUBJECT = rf"(?!(?:{NO_SUBJECT})\b|\w+ly\b)(?P<s>(?:[Hh]e|[Ss]he|[Ii]t|[Tt]hey|[Tt]he [a-z]+|(?:The )?{THING}(?:,? (?:and|of) (?:the )?{THING})?))"
VERBS = "|".join(sorted({*BASES, *PRESENT}, key=len, reverse=True))
ADVERB = r"(?:[a-z]+ly |also |then |first |later |once |now |still )?"
HELPING = r"(?!(?:had|has|have) (?:been|to|[a-z]+ed|won|become|made|also|not|never|since|[a-z]+ly)\b)(?![a-z]+ by\b)"
PARTICIPLE = r"(?P<p>[a-z-]{2,}(?:ed|en|wn|ilt|eld|ade|ung|old|ught|ost|ound|set|out|orn|led|un))"
PREDICATE = (
    rf"(?:(?P<be>was|were|is|are|has been|have been) {ADVERB}{PARTICIPLE}|{ADVERB}{HELPING}(?P<v>{VERBS})) (?P<rest>.+)"
)
PASSIVE = re.compile(
    rf"{SUBJECT}(?:,[^,]{{1,60}},)? (?P<be>was|were|is|are|has been|have been) {ADVERB}{PARTICIPLE}(?P<v>) (?P<rest>.+)"
)
ACTIVE = re.compile(rf"{SUBJECT}(?:,[^,]{{1,60}},)? {ADVERB}{HELPING}(?P<v>{VERBS})(?P<p>) (?P<rest>.+)")
AND = re.compile(rf",? (?:and|but) (?={PREDICATE})")
RELATIVE = re.compile(rf"(?P<s>{THING}),? (?P<w>who|which) (?={PREDICATE})")
THE = re.compile(
    rf"{SUBJECT}(?:,[^,]{{1,60}},)? (?P<be>is|was) (?P<d>the (?!same|first\b of)[^;,]{{8,90}}?)(?=[;,]| and (?:is|was|has|the|one|a)\b| (?:which|who|that|where|until|from|since|when|between)\b|$)"
)
APPOSITION = re.compile(
    rf"(?P<v>{PERSON}), the (?P<role>(?:[a-z-]+ ){{0,3}}(?:founder|president|director|leader|owner|mayor|king|queen|son|daughter|wife|husband|father|mother|brother|sister|author|creator|chairman|head|coach|captain|editor|governor|inventor|capital|host|manager|singer|guitarist|drummer|daughter) of (?:the )?{THING})(?=[,.;])"
)
WHEN = re.compile(
    rf"\b(?P<prep>in|on|since|around) (?P<v>(?:early |late |mid-)?(?:{DATE}|\d{{4}}s))\b(?! (?:to|and|until|or|-)\b)(?!-)"
)
BY = re.compile(rf"\bby (?P<v>(?:the )?{THING})(?=[,;]|$| (?:in|on|and|to|for|as|at|from)\b)")
WHERE = re.compile(rf"\b(?:in|at) (?P<v>(?!{MONTH})(?:the )?{PLACE})(?=[,;]|$| (?:in|on|and|to|for|as|by|from)\b)")
NUMBER = re.compile(
    r"(?P<v>(?:\d{1,3}(?:,\d{3})+|(?!(?:1[89]|20)\d\d\b)\d+(?:\.\d+)?|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty)(?: million| billion)?) (?P<n>(?:[a-z-]+ ){0,2}?[a-z]{3,}s)(?=[ ,;]|$)"
)
OBJECT = re.compile(
    rf"(?P<v>(?:(?:the |a |an )(?:[a-z-]+ ){{0,2}})?{THING})(?=[,;]|$| (?:in|on|at|from|for|with|by|and|to|as|after)\b)"
)
WHY = re.compile(r" (?P<v>(?:because of|due to|in order to|because) [^,.;]{8,60})(?=[,;]|$)")
DONE = "married wrote sang directed died starred graduated studied played coached painted"
PERSONAL = frozenset(DONE.split())
MET = "married defeated beat met succeeded replaced portrayed stars starred"
UPON_PEOPLE = frozenset(MET.split())
BY_WHAT = (
    "bounded bordered surrounded affected inspired influenced caused followed preceded drained crossed served powered"
)
BY_THINGS = frozenset(BY_WHAT.split())
NO_PLACES = frozenset(("appeared", "starred", "acted", "featured", "stars", "appears", "cast", "included"))
KINDS_OF_NAMES = (
    "award prize medal trophy cup championship championships league university college school church museum river lake "
    "party company band album festival series tournament team club game bridge church district county city station "
    "division conference committee act treaty title"
)
SORTS = frozenset(KINDS_OF_NAMES.split())  # last words of names that say what kind of thing is asked for
UNNAMED = re.compile(
    r"\b(?:he|she|it|they|him|them|we|our|this|these|which|whose|such|former|latter|itself)\b|\[|[a-z\d]{4}\. "
)
UNNAMED_THING = re.compile(r"\bits\b")
UNNAMED_PERSON = re.compile(r"\b(?:his|her)\b")
DANGLING = re.compile(
    r" (?:a|an|the|of|and|or|both|between|then|by .* by|with|for|from|to|as|than|its|his|her|their|including|-|also|not|over|about)\?$"
    r"|\b(?:both|between)\b(?!.* and )|^(?:Who|What|Which \w+) (?:is|was|were|are) (?:a|an)\b|\b(\w+) \1\b"
)
STOP = re.compile(
    r"[,;:](?= (?!\d{4}\b)|$)| - | (?:and|but|while|which|who|where|when|after|before|until|with|that|because|due to) "
)
