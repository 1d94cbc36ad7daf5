"""The list of visual words and words of style that `analysis.lexicon` looks up, made from WordNet 3.0.

    python -m analysis.wordnet --wordnet /usr/share/wordnet --out analysis/lexicon

A word is what its most frequent sense is: nouns and verbs by the lexicographer's file (animals and artefacts are visual,
thoughts and feelings style), some of them by a kind above theirs, adjectives by the attribute that they tell, adverbs style;
with `lexicon/hand.tsv` for function words, colours, places, and for what WordNet sees otherwise than a caption means it.
The command writes `words.tsv`, which the package ships, and `SOURCE.md`. Words of neither kind are not in it, but for those
that lookup would take for a form of another word.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

from analysis.lexicon import FOLDER, LABELS, Label, forms_of, kind_in
from dpa.errors import InputError, command

# lexicographers' files by number (WordNet's lexnames)
LEXNAMES = """adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition
noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person
noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state noun.substance
noun.time verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption verb.contact
verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative verb.weather adj.ppl"""
FILES = LEXNAMES.split()
VISUAL_FILES = """noun.animal noun.artifact noun.body noun.food noun.location noun.object noun.person noun.plant noun.shape
noun.substance verb.body verb.consumption verb.contact verb.motion verb.weather"""
STYLE_FILES = """noun.attribute noun.cognition noun.communication noun.feeling noun.motive verb.cognition verb.communication
verb.emotion adj.all adj.ppl adv.all"""
KINDS: dict[str, Label] = {  # what is in no file of these is other
    **dict.fromkeys(VISUAL_FILES.split(), "visual"),
    **dict.fromkeys(STYLE_FILES.split(), "style"),
}
# Kinds of noun that are another kind of word than the rest of their file: lemma/sense.
VISUAL_ABOVE = """visual_property/1 spatial_property/1 spatial_relation/1 size/1 sport/1 game/1 locomotion/2 social_event/1
dancing/1 atmospheric_phenomenon/1 light/1 optical_phenomenon/1 animal_group/1 gathering/1 vegetation/1
collection/1 illumination/2 integer/1 currency/1 visual_signal/1 signboard/1"""
ABOVE: dict[str, Label] = {**dict.fromkeys(VISUAL_ABOVE.split(), "visual"), "medicine/2": "other"}
# Attributes that can be seen; an adjective tells one itself, or through the adjective that it is similar to.
ATTRIBUTES = """color hue light luminosity complexion clearness clarity opacity dullness texture size height width length
thickness depth volume stature body_weight numerousness shape sharpness cubicity curliness evenness position distance
orientation direction age sex wetness fullness cleanness"""
SEEN = frozenset(ATTRIBUTES.split())
# What an adjective formed from a noun must be formed from to be visual: "metallic", "floral"; the rest is other.
FORMED = ("noun.substance", "noun.plant", "noun.shape", "noun.object", "noun.animal")
SPOKEN = 2  # glosses that a word must occur in to be common where it is never tagged
EVERYDAY = ("n.artifact", "n.food")  # kept whole: a futon, a croissant
PLAIN = re.compile(r"[a-z]+(-[a-z]+)*")
RARE = 5  # uses of a word below which it gives way to another that it may be a form of: "adorned", "holding"
FAR = 3  # times as often as that the other must be used to take one that is not rare: "making", but not "building"


class Synset(NamedTuple):
    """A sense: its lexicographer's file, its words as spelled, (relation, synset) pairs, its gloss."""

    file: str
    words: list[str]
    related: list[tuple[str, str]]
    gloss: str


class Sense(NamedTuple):
    """One sense of a word: how often it is tagged in WordNet's texts, part of speech, synset."""

    uses: int
    part: str
    synset: str


class WordNet:
    """The database files of WordNet 3.0 in a folder. InputError when they are not there or not in its format."""

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[str, Synset] = {}
        self.senses: dict[str, list[Sense]] = defaultdict(list)  # of a lemma, the most frequent first
        self.irregular: dict[str, list[tuple[str, str]]] = defaultdict(list)  # form: (part of speech, lemma)
        self.spoken: Counter[str] = Counter()  # glosses that a word occurs in
        self.above: dict[str, tuple[str, Label]] = {}  # `ABOVE` by synset
        try:
            self._read(folder)
        except FileNotFoundError as error:
            raise InputError(
                f"{error.filename}: not there; give the folder of WordNet 3.0's index and data files"
            ) from None
        except (ValueError, IndexError) as error:
            raise InputError(f"{folder}: not the database files of WordNet 3.0 ({error}); install them again") from None

    def _read(self, folder: Path) -> None:
        uses: dict[tuple[str, str, int], int] = {}
        for line in (folder / "cntlist.rev").read_text("ascii").splitlines():
            key, place, times = line.split()
            lemma, rest = key.split("%")
            uses[lemma, "nvara"[int(rest[0]) - 1], int(place)] = int(times)
        for part, name in (("n", "noun"), ("v", "verb"), ("a", "adj"), ("r", "adv")):
            for line in (folder / f"data.{name}").read_text("latin-1").splitlines():
                if not line.startswith(" "):
                    self.synsets[part + line[:8]] = synset = _synset(line)
                    self.spoken.update(set(re.findall(r"[a-z]+(?:-[a-z]+)*", synset.gloss.lower())))
            for line in (folder / f"index.{name}").read_text("latin-1").splitlines():
                if not line.startswith(" "):
                    fields = line.split()
                    for number, offset in enumerate(fields[-int(fields[2]) :], 1):
                        count = uses.get((fields[0], part, number), 0)
                        self.senses[fields[0]].append(Sense(count, part, part + offset))
            for line in (folder / f"{name}.exc").read_text("latin-1").splitlines():
                form, *lemmas = line.split()
                self.irregular[form] += [(part, lemma) for lemma in lemmas]
        for senses in self.senses.values():
            senses.sort(key=lambda sense: -sense.uses)  # stable: nouns first, then in WordNet's order
        for word in list(self.spoken):
            for form in forms_of(word):
                if form != word and form in self.senses:
                    self.spoken[form] += self.spoken[word]
        for root, label in ABOVE.items():
            lemma, place = root.split("/")
            nouns = [sense.synset for sense in self.senses[lemma] if sense.part == "n"]
            self.above[nouns[int(place) - 1]] = (lemma, label)

    def uses(self, word: str, parts: str = "nvar") -> int:
        """How often a lemma is tagged as one of some parts of speech."""
        return sum(sense.uses for sense in self.senses.get(word, ()) if sense.part in parts)


def _synset(line: str) -> Synset:
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    first = 4 + 2 * int(fields[3], 16)  # of the pointers
    related = [
        (fields[at], fields[at + 2].replace("s", "a") + fields[at + 1])
        for at in range(first + 1, first + 1 + 4 * int(fields[first]), 4)
    ]
    return Synset(FILES[int(fields[1])], fields[4:first:2], related, gloss)


class Judgement(NamedTuple):
    label: Label
    why: str


def judged(wordnet: WordNet, word: str) -> Judgement:
    """The kind of a lemma, and why: of its most frequent sense; or, where that is other, of the next that is not, if it is
    used at least half as often ("table", whose first sense is that of data).
    """
    senses = wordnet.senses[word]
    first = _judged_sense(wordnet, word, senses[0].synset)
    for sense in senses:
        if 2 * (sense.uses + 1) < senses[0].uses + 1:
            break
        judgement = _judged_sense(wordnet, word, sense.synset)
        if judgement.label != "other":
            return judgement
    return first


def _judged_sense(wordnet: WordNet, word: str, name: str) -> Judgement:
    synset = wordnet.synsets[name]
    spellings = {spelled.partition("(")[0] for spelled in synset.words}  # without a mark of place, "asleep(p)"
    if word not in spellings:
        return Judgement("other", "name")  # spelled with a capital
    if synset.file.startswith("adj"):
        return _judged_adjective(wordnet, name)
    if name.startswith("n"):
        for kind in _hypernyms(wordnet, name):
            if kind in wordnet.above:
                lemma, label = wordnet.above[kind]
                return Judgement(label, f"{_short(synset.file)}: {lemma}")
    return Judgement(KINDS.get(synset.file, "other"), _short(synset.file))


def _judged_adjective(wordnet: WordNet, name: str) -> Judgement:
    synset = wordnet.synsets[name]
    heads = [name, *(other for relation, other in synset.related if relation == "&")]
    told = {
        word
        for head in heads
        for relation, other in wordnet.synsets[head].related
        if relation == "="
        for word in wordnet.synsets[other].words[:1]
    }
    if seen := sorted(told & SEEN):
        return Judgement("visual", f"adj: {seen[0]}")
    formed = [wordnet.synsets[other].file for relation, other in synset.related if relation == "\\"]
    if formed:
        found = next((file for file in formed if file in FORMED), None)
        return (
            Judgement("visual", f"adj of {_short(found)}")
            if found
            else Judgement("other", f"adj of {_short(formed[0])}")
        )
    return Judgement(KINDS.get(synset.file, "other"), _short(synset.file))


def _short(file: str) -> str:
    return file.replace("noun.", "n.").replace("verb.", "v.")


def _hypernyms(wordnet: WordNet, name: str) -> Iterator[str]:
    """A noun's synset and those above it, the nearest first."""
    level, met = [name], {name}
    while level:
        yield from level
        above = [o for s in level for relation, o in wordnet.synsets[s].related if relation == "@" and o not in met]
        met.update(above)
        level = list(dict.fromkeys(above))


def by_hand() -> dict[str, Judgement]:
    """{word: kind and reason} of our own list, `hand.tsv`. InputError for a kind that is none, or a word in two."""
    found: dict[str, Judgement] = {}
    for number, line in enumerate((FOLDER / "hand.tsv").read_text(encoding="utf-8").splitlines()[1:], 2):
        kind, why, words = line.split("\t")
        for word in words.split():
            if kind not in LABELS or word in found:
                raise InputError(
                    f"hand.tsv line {number}: {word!r} as {kind}; one of {', '.join(LABELS)}, and once a word"
                )
            found[word] = Judgement(cast(Label, kind), f"hand: {why}")
    return found


def made(wordnet: WordNet, hand: dict[str, Judgement]) -> dict[str, Judgement]:
    """{word: kind and reason} of the list that is shipped, in alphabetical order: `hand`, and the common words of WordNet
    and their irregular forms, without those that lookup finds by another word anyway.
    """
    wanted = dict(hand)
    for word in wordnet.senses:
        if word not in wanted and len(word) > 1 and PLAIN.fullmatch(word) and not _is_form(wordnet, word):
            judgement = judged(wordnet, word)
            spoken = wordnet.spoken[word] >= SPOKEN or judgement.why in EVERYDAY
            if wordnet.uses(word) or spoken or judgement.label == "other":
                wanted[word] = judgement
    for form, lemmas in wordnet.irregular.items():
        lemma = max((lemma for _, lemma in lemmas), key=wordnet.uses)
        if form not in wanted and lemma in wanted and PLAIN.fullmatch(form):
            wanted[form] = Judgement(wanted[lemma].label, f"form of {lemma}")
    kept: dict[str, str] = {}
    for word in sorted(wanted, key=len):  # what a word may be a form of is shorter, and settled before it
        if (kind_in(word, kept) or "other") != wanted[word].label or not _has_no_forms(wordnet, word, wanted[word]):
            kept[word] = wanted[word].label
    return {word: wanted[word] for word in sorted(kept)}


def _has_no_forms(wordnet: WordNet, word: str, judgement: Judgement) -> bool:
    """Whether nothing is lost with a word that lookup finds by another: no form of its own is looked up by it."""
    if judgement.label == "other" or judgement.why.startswith("form of") or "-" in word:
        return True
    return word.endswith(("s", "ly", "ing", "ed")) and not any(
        sense.part == "v" for sense in wordnet.senses.get(word, ())
    )


def _is_form(wordnet: WordNet, word: str) -> bool:
    """Whether a lemma is rather a form of another: rare itself and the other no rarer, or the other used far more."""
    parts = "v" if word.endswith(("ing", "ed")) else "nv" if word.endswith("s") else ""
    forms = [(lemma, part) for part, lemma in wordnet.irregular.get(word, ())]
    forms += [(form, part) for form in forms_of(word) for part in parts if form not in ("be", "see")]  # bed, seed
    own = wordnet.uses(word)
    others = [
        wordnet.uses(form, part)
        for form, part in forms
        if form != word and any(sense.part == part for sense in wordnet.senses.get(form, ()))
    ]
    return bool(others) and (max(others) > FAR * own if own >= RARE else max(others) >= own)


SOURCE = """# The word list

`words.tsv` (word, class, why) labels {total:,} words: {visual:,} visual, {style:,} style, {other:,} other (words that are neither, and
that lookup would take for a form of another). It was made by

    {command}

from WordNet 3.0 (Debian package `wordnet-base`; https://wordnet.princeton.edu) and our own list `hand.tsv`, which goes first.

A word is labelled by its most frequent sense: by the tagged uses in `cntlist.rev`, then in the order of the index files. Kept are
words that are tagged there or occur in {spoken} glosses or more, and all artefacts and food; names are left out, and words that
lookup finds by another word with the same label. Irregular forms come from WordNet's files of exceptions; regular ones are undone
at lookup. The rules stand in `analysis/wordnet.py`.

`why` is the lexicographer's file of the sense (n. noun, v. verb); behind a colon the kind above it, or the attribute that an
adjective tells, that decided; `adj of` is an adjective formed from a noun of that file, `form of` an irregular form of a
lemma, `name` a word that WordNet spells with a capital, `hand` our own list. How many words by each:

| why | visual | style | other |
|---|---|---|---|
{rows}

## Licence of WordNet

{licence}
"""


def source_text(found: dict[str, Judgement], command_line: str, licence: str) -> str:
    """SOURCE.md of a list: where it is from, how it was made, how many words of each kind and reason, the licence."""
    kinds = Counter(judgement.label for judgement in found.values())
    table: dict[str, Counter] = defaultdict(Counter)
    for kind, why in found.values():
        table[re.split(r":| of ", why)[0]][kind] += 1
    rows = [
        " | ".join(("| " + why, *(f"{table[why][kind]:,}" for kind in LABELS))) + " |"
        for why in sorted(table, key=lambda why: (-table[why].total(), why))
    ]
    return SOURCE.format(
        total=len(found),
        visual=kinds["visual"],
        style=kinds["style"],
        other=kinds["other"],
        command=command_line,
        spoken=SPOKEN,
        rows="\n".join(rows),
        licence=licence,
    )


def licence_of(wordnet: Path) -> str:
    """WordNet's licence as each of its data files carries it at its head, without the numbers of the lines.

    InputError for another version: `ABOVE` counts senses as 3.0 does.
    """
    lines = []
    with open(wordnet / "data.noun", encoding="latin-1") as file:
        for line in file:
            if not line.startswith("  "):
                break
            lines.append(line[2:].strip().partition(" ")[2].strip())
    licence = "\n".join(lines).strip()
    if "WordNet 3.0 Copyright" not in licence:
        raise InputError(f"{wordnet}: not WordNet 3.0 by its licence; give the folder of that version")
    return licence


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.wordnet", description=__doc__.split("\n")[0])
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of WordNet 3.0's index.*, data.* and *.exc")
    parser.add_argument("--out", type=Path, required=True, help="folder for words.tsv and SOURCE.md")
    options = parser.parse_args(arguments)
    wordnet = WordNet(options.wordnet)
    licence = licence_of(options.wordnet)
    found = made(wordnet, by_hand())
    words = "".join(f"{word}\t{kind}\t{why}\n" for word, (kind, why) in found.items())
    command_line = f"python -m analysis.wordnet --wordnet {options.wordnet} --out {options.out}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "words.tsv").write_text("word\tclass\twhy\n" + words, encoding="utf-8")
    source = source_text(found, command_line, licence)
    (options.out / "SOURCE.md").write_text(source, encoding="utf-8")
    counts = Counter(judgement.label for judgement in found.values())
    print(f"{options.out / 'words.tsv'}: " + ", ".join(f"{counts[kind]:,} {kind}" for kind in LABELS))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
