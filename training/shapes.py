# ruff: noqa: E501 - a line is an expression
"""Shapes of statements that can be asked about, and of what is asked for in them."""

from __future__ import annotations

import re

from training.relations import KINDS
from training.texts import DATE, MONTH, PERSON, PLACE, THING
from training.verbs import BASES

BRACKETS = re.compile(r" ?[(\[][^()\[\]]*[)\]]")
FRONT = re.compile(
    rf"(?P<prep>In|On|By|During|Since) (?P<when>(?:the )?(?:early |late |mid-)?(?:{DATE}|\d{{4}}s)),? (?P<rest>.+)"
)
PRONOUN = re.compile(rf"(?:He|She|It|They|he|she|it|they|[Tt]he (?P<kind>{KINDS}|building|group))$")
NO_SUBJECT = (
    "Although|After|While|When|As|In|With|During|From|Since|Before|At|On|For|By|To|If|Though|Because|Following|Despite|"
    "Upon|Under|Where|This|That|These|Those|There|Both|Some|Many|Most|Other|Each|All|Another|However|Also|Then|Until"
)
SUBJECT = rf"(?!(?:{NO_SUBJECT})\b)(?P<s>(?:[Hh]e|[Ss]he|[Ii]t|[Tt]hey|[Tt]he [a-z]+|(?:The )?{THING}(?:,? (?:and|of) (?:the )?{THING})?))"
VERBS = "|".join(sorted(BASES, key=len, reverse=True))
ACTIVE = re.compile(
    rf"{SUBJECT}(?:,[^,]{{1,60}},)? (?:(?P<adv>[a-z]+ly|also|then|later|first) )?(?P<v>{VERBS}) (?P<rest>.+)"
)
PASSIVE = re.compile(
    rf"{SUBJECT}(?:,[^,]{{1,60}},)? (?P<be>was|were|is|are) (?:[a-z]+ly |also |then |first |later )?(?P<v>[a-z-]+(?:ed|en|wn|ilt|eld|ade|un|ung|ld|ught|ost|und|et|ut|orn)) (?P<rest>.+)"
)
THE = re.compile(
    rf"{SUBJECT}(?:,[^,]{{1,60}},)? (?P<be>is|was) (?P<d>the (?!same|first\b of)[^.;]{{8,90}}?)(?=[.;,]| and | which | who | that |$)"
)
HAS = re.compile(r"(?:had|has|have|contains|includes|features|consists of|comprises) ")
APPOSITION = re.compile(
    rf"(?P<v>{PERSON}), the (?P<role>(?:[a-z-]+ ){{0,3}}(?:founder|president|director|leader|owner|mayor|king|queen|son|daughter|wife|husband|father|mother|brother|sister|author|creator|chairman|head|coach|captain|editor|governor|inventor|capital|host|manager|singer|guitarist|drummer|daughter) of (?:the )?{THING})(?=[,.;])"
)
WHEN = re.compile(rf"\b(?P<prep>in|on|since|from|until|around) (?P<v>(?:early |late |mid-)?(?:{DATE}|\d{{4}}s))\b")
BY = re.compile(rf"\bby (?P<v>(?:the )?{THING})(?=[,.;]|$| (?:in|on|and|to|for|as|at|from)\b)")
WHERE = re.compile(rf"\b(?:in|at) (?P<v>(?!{MONTH})(?:the )?{PLACE})(?=[,.;]|$| (?:in|on|and|to|for|as|by|from)\b)")
NUMBER = re.compile(
    r"(?P<v>(?:\d{1,3}(?:,\d{3})+|(?!(?:1[89]|20)\d\d\b)\d+(?:\.\d+)?|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty)(?: million| billion)?) (?P<n>(?:[a-z-]+ ){0,2}?[a-z]{3,}s)(?=[ ,.;]|$)"
)
OBJECT = re.compile(
    rf"(?P<v>(?:(?:the |a |an )(?:[a-z-]+ ){{0,2}})?{THING})(?=[,.;]|$| (?:in|on|at|from|for|with|by|and|to|as|after)\b)"
)
WHY = re.compile(r" (?P<v>(?:because of|due to|in order to|because) [^,.;]{8,60})(?=[,.;]|$)")
DONE = "married wrote sang directed died starred graduated studied played coached painted"
PERSONAL = frozenset(DONE.split())
STOP = re.compile(r"[,;.:](?= |$)| (?:and|but|while|which|who|where|when|after|before|until|with|that|because|due to) ")
