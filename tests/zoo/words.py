"""The words that every generated tokenizer knows: ordinary English, digits and punctuation, most frequent first."""

from __future__ import annotations

MARKS = tuple("0123456789.,!?:;'\"()-/$%&*+>")

WORDS = tuple(
    """
    the of and to in is that for it was on are with as be at he by this had not but from or have an they
    which one you were her all she there would their we him been has when who will more no if out so said
    what up its about into than them can only other new some could time these two may then do first any my
    now such like our over man me even most made after also did many before must through back years where
    much your way well down should because each just those people how too little state good very make world
    still own see men work long get here between both life being under never day same another know while last
    might us great old year off come since against go came right used take three states himself few house use
    during without again place american around however home small found thought went say part once general
    high upon school every does got united left number course war until always away something fact water
    though less public put think almost hand enough far took head yet government system better set told
    nothing night end why called eyes find going look asked later knew point next program city business give
    group toward young days let room word possible white several given present order side face often national
    second large rather among important big need social form case children things power country line want
    mind free service best along turn open light money body read study law moment name true past least love
    change job book family company research market history value heart table period level early problem human
    certain interest field play close local question art air clear reason person help real south north
    building center control paper music story girl father mother student total special common ten able
    community living space process type report data action death century act morning window policy department
    land late party example hard foreign education section test list blood trade page
    """.split()
)

SUFFIXES = ("ing", "ed", "er", "al", "es", "tion", "ly", "ment", "re", "en", "s")

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")

PIECES = MARKS + WORDS
