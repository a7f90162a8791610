"""Stop names: names that the dictionary linker ignores, such as common words, numbers and single letters."""

from bali_ds.corpus.normalization import normalize_word, split_words

_WORDS = """
a about above absent abstract access accident account across act action active activity actual acute add addition
adequate adult after again against age agent aid aim air all alone also always am among amount an analysis and another
answer any appear application apply approach are area around arm array article as aspect assay assessment associated
association at attempt author available average away back background bar base based basic basis be because become been
before begin being below best better between big binding body book both bottom box break bring build but by call can
cannot care carry case cases cause cell center central certain chain change character check choice class clear clinical
close code cold collection color combination come common complete complex component compound concern conclusion
condition consider contact contain content contrast control correct cost could count country course cover criteria
current cut cycle daily damage data date day days decrease deep define degree delay deliver design detail detect
determine develop device did difference different difficult direct direction discharge discussion distance distribution
do does done double down draw drive drop due during each early easy edge effect eight either element eleven else end
enough entire entity environment equal error even event ever every evidence exact example exercise expect experience
expose expression extent extra face fact factor fail fall family far fast fat feature feed feel few field fifth figure
file fill film final find finding fine fire first fit five fixed flat flow fluid focus follow food foot for force form
forward found four frame free frequency frequent from front full function further future gain gap gas gather gender
general get give given glass go goal gold good grade great ground group grow guide had half hand hard has have he help
hence her here high higher him his history hold home hour how however human idea if impact implant important in include
increase index individual induced inform information initial inside instead interest internal into involve is issue it
item its itself job join just keep key kind know known label lack large last late later lead learn least leave left
length less let level life light like likely limit line link list little live local location long look loss lot low
lower made main major make male man management many mark mass match material matter may mean measure measurement medical
member men method might mild mind minor minute mode model moderate more most mother motion move much multiple must name
narrow nature near need negative network never new next night nine no node none nor normal not note nothing now number
object observation observe obtain occur of off often old on once one only onset open option or order origin other our
out outcome outside over own page paper part partial particular pass past path patient patients pattern people per
perform period person phase place plan plane plant plate play plus point poor population position positive possible
post potential power practice presence present press pressure prevent previous primary prior probe problem procedure
process product production profile program progress property protein provide public purpose put quality quantity
question quick range rare rate rather ratio reach read ready real reason receive recent record reduce reference refer
region regular related relation release remain remove repeat report require research resource response rest result
results return review right ring rise risk role room root round route row rule run safe same sample save say scale
school science score screen search season second secondary section see seen select self sense sensitive separate
sequence series serious serum set seven several severe sex shape share she short should show side sign signal similar
simple since single site six size skill slow small so social soft solid solution some sound source space special
specific spread spring stable stage stand standard start state status step stick still stop strain strength stress
strong structure study subject such sudden suggest summary support sure surface survey system table take target task
team technique temperature ten term test than that the their them then theory there these they thing think third this
those thousand three through thus time tissue to today together tolerance too tool top total toward trace track trait
transfer treat trend trial true try turn twelve two type under unit until up upon upper use used useful user usual
value variable various vary very via view visit vital volume wait walk want warm was watch water wave way we weak week
weight well were what when where whether which while white who whole whose why wide will window with within without
woman women word work world would year years yes yet you young your zone
"""
_COMMON = frozenset(_WORDS.split())
_NORMALIZED = frozenset(map(normalize_word, _COMMON))


_LONGEST_SYMBOL = 8


def is_symbol(words: list[str]) -> bool:
    """Return whether a name is one short word with two capitals, or a capital and a digit: AIDS, IgM, B12.

    Such a name is valid in its own spelling alone.
    """
    if len(words) != 1 or len(words[0]) > _LONGEST_SYMBOL:
        return False
    capitals = sum(letter.isupper() for letter in words[0])
    return capitals >= 2 or (capitals == 1 and any(letter.isdigit() for letter in words[0]))


def is_written_as_symbol(text: str) -> bool:
    """Return whether a mention in a text is written as a symbol, see `is_symbol`."""
    return is_symbol(split_words(text).texts)


def is_stop_name(words: list[str]) -> bool:
    """Return whether a name, given as its words, is only a common word, a number, a unit or one or two letters."""
    if is_symbol(words):
        return len(words[0]) < 3 or words[0].lower() in _COMMON
    if len(words) == 1 and (len(words[0]) < 3 or normalize_word(words[0]) in _NORMALIZED):
        return True
    return not any(len(word) > 1 and (word.isalpha() or (len(word) > 2 and not word.isdecimal())) for word in words)
