#!/usr/bin/env python3
"""make_unicode.py - the Unicode 16 tables of ftune.h

    build/venv/bin/python tests/make_unicode.py FILE      replace the tables between the two marker lines of FILE
    build/venv/bin/python tests/make_unicode.py --sums    the checksums that tests/test_91_unicode.c expects

Sources, all PyPI:
    unicodedata2 16.0.0   general categories, combining classes, decompositions: Unicode 16.0
    regex                 Script=Han and White_Space. Its tables are Unicode 17, so only code points that Unicode 16
                          assigns are taken; no older code point changed either property in 17.
    tokenizers            lower case, which is Rust's char::to_lowercase (the fast tokenizers' own), again cut to
                          the code points of Unicode 16; where its BERT normaliser, whose tables are about
                          Unicode 8, disagrees with Unicode 16 about marks, punctuation and format characters; and
                          which characters its normal forms, of Unicode 9, do not know yet; its expressions (those of
                          Oniguruma): scripts, and symbols that count as letters; and the scripts that its
                          UnicodeScripts, of about Unicode 8, knows
The checksums are computed from these packages, not from the tables, so they check the tables.
"""
import sys
import regex
import unicodedata2 as ud
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.normalizers import BertNormalizer, Lowercase, StripAccents
from tokenizers.pre_tokenizers import BertPreTokenizer

assert ud.unidata_version == "16.0.0", ud.unidata_version
N, LIMIT, BLOCK = 0x110000, 0x20000, 64
BEGIN = "/* ---- Unicode tables, made by tests/make_unicode.py: do not edit by hand ---- */"
END = "/* ---- end of the Unicode tables ---- */"
UPPER, LOWER, MODIFIER, CASELESS, MARK, NUMBER, SPACE, HAN, PUNCT, CONTROL, FORMAT, UNASSIGNED, NONSPACING, \
    NOT_NFC, DECOMPOSES, LOWERS = (1 << i for i in range(16))
COMPAT, NEWER, ATTACHES, PREPENDS, BREAKS, BERT_MARK, BERT_PUNCT, BERT_FORMAT = (1 << i for i in range(24, 32))
CLASS_BITS = 0x1FFF
FORMS = ("NFC", "NFD", "NFKC", "NFKD")

chars = [chr(c) for c in range(N)]
cat = [ud.category(ch) for ch in chars]
surrogate = range(0xD800, 0xE000)
hangul = range(0xAC00, 0xD7A4)


def assigned(c):
    return cat[c] not in ("Cn", "Cs")


def class_of():
    han, white = regex.compile(r"\p{Script=Han}"), regex.compile(r"\p{White_Space}")
    by_category = {"Lu": UPPER, "Lt": UPPER, "Ll": LOWER, "Lm": MODIFIER, "Lo": CASELESS, "Mn": MARK | NONSPACING,
                   "Mc": MARK, "Me": MARK, "Cc": CONTROL, "Cf": FORMAT, "Cn": UNASSIGNED, "Co": UNASSIGNED,
                   "Cs": UNASSIGNED}
    by_letter = {"N": NUMBER, "P": PUNCT, "S": 0, "Z": 0}
    out = []
    for c in range(N):
        bits = by_category[cat[c]] if cat[c] in by_category else by_letter[cat[c][0]]
        if assigned(c):
            bits |= (HAN if han.match(chars[c]) else 0) | (SPACE if white.match(chars[c]) else 0)
        out.append(bits)
    return out


def decompositions():
    """canonical, one step: code point -> (first, second or 0); and the pairs that compose again"""
    single = {}
    for c in range(N):
        d = ud.decomposition(chars[c])
        if d and not d.startswith("<"):
            d = [int(x, 16) for x in d.split()]
            single[c] = (d[0], d[1] if len(d) > 1 else 0)
    pairs = {d: c for c, d in single.items() if d[1] and ud.normalize("NFC", chars[c]) == chars[c]}
    return single, pairs


def lower_cases():
    rust, out = Lowercase(), {}
    for c in range(N):
        if assigned(c):
            s = rust.normalize_str(chars[c])
            if s != chars[c]:
                out[c] = [ord(x) for x in s]
    return out


classes, lower = class_of(), lower_cases()
single, pairs = decompositions()


def bert_differs():
    """code point -> bits, where the original's answer is not the one of Unicode 16"""
    def normalizer(clean, strip):
        return BertNormalizer(clean_text=clean, handle_chinese_chars=False, strip_accents=strip, lowercase=False)
    clean, strip, cut, out = normalizer(True, False), normalizer(False, True), BertPreTokenizer(), {}
    for c in range(0x80, N):
        if assigned(c):
            s = "a%sb" % chars[c]
            out[c] = ((bool(classes[c] & NONSPACING) != (strip.normalize_str(s) == "ab")) * BERT_MARK
                      | (bool(classes[c] & PUNCT) != (len(cut.pre_tokenize_str(s)) == 3)) * BERT_PUNCT
                      | (bool(classes[c] & FORMAT) and clean.normalize_str(s) != "ab") * BERT_FORMAT)
    return out


def clusters():
    """bits of Grapheme_Cluster_Break"""
    kinds = (ATTACHES, "Extend|ZWJ|SpacingMark"), (PREPENDS, "Prepend"), (BREAKS, "Control|CR|LF")
    tests = [(bit, regex.compile("|".join(r"\p{Grapheme_Cluster_Break=%s}" % v for v in values.split("|"))))
             for bit, values in kinds]
    return lambda c: sum(bit for bit, test in tests if (assigned(c) or bit == BREAKS) and test.match(chars[c]))


def newer():
    """code points that the fast tokenizers' normal forms and StripAccents leave alone, being newer than their tables"""
    rust = {form: getattr(normalizers, form)().normalize_str for form in FORMS}
    strip, out = StripAccents().normalize_str, set()
    for c in range(0x80, N):
        if not assigned(c):
            continue
        ch, mark = chars[c], classes[c] & MARK
        probe = "a\u0345" + ch                           # of the highest class but one: a mark goes in front of it
        if (any(rust[f](ch) != ud.normalize(f, ch) for f in FORMS) or (mark and strip(ch))
                or rust["NFD"](probe) != ud.normalize("NFD", probe)):
            assert all(rust[f](ch) == ch for f in FORMS) and strip(ch) == ch and rust["NFD"](probe) == probe, hex(c)
            out.add(c)
    return out


def kinds():
    """class bits, the three bits of normalisation and case, combining class in bits 16..23, eight more bits"""
    seconds = {b for _, b in pairs} | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    new, bert, cluster, out = newer(), bert_differs(), clusters(), []
    for c in range(N):
        k = classes[c] | ud.combining(chars[c]) << 16 | bert.get(c, 0) | cluster(c)
        if c not in surrogate:       # the parts of U+16123 begin with a letter that joins the one before: not certain
            parts = ud.normalize("NFD", chars[c])
            if ord(parts[0]) in seconds or ud.normalize("NFC", chars[c]) != chars[c]:
                k |= NOT_NFC
            if ud.normalize("NFKD", chars[c]) != parts:
                k |= COMPAT
        if c in single or c in hangul:
            k |= DECOMPOSES
        if c in lower:
            k |= LOWERS
        if c in new:
            k |= NEWER
        out.append(k)
    return out


CATEGORIES = ("Lu Lt Ll Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn").split()
OTHER_ALPHABETIC = 1 << 29


def matching(pattern, text):
    """the characters of a text that an expression matches, as Hugging Face does"""
    cut = pre_tokenizers.Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(text)
    return "".join(text[a:b] for _, (a, b) in cut)


def categories():
    """what the class does not tell: first code point, how many, the bits: a category, and whether a symbol counts as a letter"""
    guess = {UPPER: "Lu", LOWER: "Ll", MODIFIER: "Lm", CASELESS: "Lo", MARK | NONSPACING: "Mn", MARK: "Mc", NUMBER: "No",
             PUNCT: "Po", CONTROL: "Cc", FORMAT: "Cf", SPACE: "Zs", CONTROL | SPACE: "Cc", 0: "So"}
    everything = "".join(chars[c] for c in range(N) if c not in surrogate)
    alphabetic = set(matching(r"[[:alpha:]]", everything))
    rows = []
    for c in range(N):
        if cat[c] in ("Cn", "Co", "Cs"):
            continue
        bits = 1 << CATEGORIES.index(cat[c])
        bits |= (chars[c] in alphabetic and cat[c][0] not in "LM" and cat[c] != "Nl") * OTHER_ALPHABETIC
        if bits == 1 << CATEGORIES.index(guess[classes[c] & ~HAN]):
            continue
        assert not classes[c] & (LOWER | MODIFIER | CASELESS | NONSPACING), hex(c)
        if rows and rows[-1][0] + rows[-1][1] == c and rows[-1][2] == bits and rows[-1][1] < 63:
            rows[-1][1] += 1
        else:
            rows.append([c, 1, bits])
    return rows


SCRIPTS = """Adlam Ahom Anatolian_Hieroglyphs Arabic Armenian Avestan Balinese Bamum Bassa_Vah Batak Bengali Bhaiksuki Bopomofo
Brahmi Braille Buginese Buhid Canadian_Aboriginal Carian Caucasian_Albanian Chakma Cham Cherokee Chorasmian Common Coptic Cuneiform
Cypriot Cypro_Minoan Cyrillic Deseret Devanagari Dives_Akuru Dogra Duployan Egyptian_Hieroglyphs Elbasan Elymaic Ethiopic Garay
Georgian Glagolitic Gothic Grantha Greek Gujarati Gunjala_Gondi Gurmukhi Gurung_Khema Han Hangul Hanifi_Rohingya Hanunoo Hatran
Hebrew Hiragana Imperial_Aramaic Inherited Inscriptional_Pahlavi Inscriptional_Parthian Javanese Kaithi Kannada Katakana Kawi
Kayah_Li Kharoshthi Khitan_Small_Script Khmer Khojki Khudawadi Kirat_Rai Lao Latin Lepcha Limbu Linear_A Linear_B Lisu Lycian Lydian
Mahajani Makasar Malayalam Mandaic Manichaean Marchen Masaram_Gondi Medefaidrin Meetei_Mayek Mende_Kikakui Meroitic_Cursive
Meroitic_Hieroglyphs Miao Modi Mongolian Mro Multani Myanmar Nabataean Nag_Mundari Nandinagari New_Tai_Lue Newa Nko Nushu
Nyiakeng_Puachue_Hmong Ogham Ol_Chiki Ol_Onal Old_Hungarian Old_Italic Old_North_Arabian Old_Permic Old_Persian Old_Sogdian
Old_South_Arabian Old_Turkic Old_Uyghur Oriya Osage Osmanya Pahawh_Hmong Palmyrene Pau_Cin_Hau Phags_Pa Phoenician Psalter_Pahlavi
Rejang Runic Samaritan Saurashtra Sharada Shavian Siddham SignWriting Sinhala Sogdian Sora_Sompeng Soyombo Sundanese Sunuwar
Syloti_Nagri Syriac Tagalog Tagbanwa Tai_Le Tai_Tham Tai_Viet Takri Tamil Tangsa Tangut Telugu Thaana Thai Tibetan Tifinagh Tirhuta
Todhri Toto Tulu_Tigalari Ugaritic Vai Vithkuqi Wancho Warang_Citi Yezidi Yi Zanabazar_Square""".split()


NAMED = "Arabic Cyrillic Devanagari Greek Han Hangul Hebrew Hiragana Katakana Latin Thai".split()     # in \\p{..}


def scripts():
    """first code point of a run, its script (the last number: none, or one of no use), and whether UnicodeScripts knows it"""
    everything = "".join(chars[c] for c in range(N) if assigned(c))
    of, rows, hf = {}, [], pre_tokenizers.UnicodeScripts()
    for i, name in enumerate(SCRIPTS):
        of.update((ord(ch), i) for ch in matching(r"\p{%s}" % name, everything))
    for c in range(1 << 18):                           # behind: tags and variation selectors, see fti_script
        if assigned(c):
            i, known = of.get(c, len(SCRIPTS)), bool(hf.pre_tokenize_str(chars[c]))
            row = [i if known or SCRIPTS[i:i + 1] and SCRIPTS[i] in NAMED else len(SCRIPTS), known]
            if not rows or rows[-1][1:] != row:
                rows.append([c] + row)
    return rows


def digits(c):
    """a number below 2^18 as three characters, six bits each, from '@' on"""
    assert c < 1 << 18
    return [chr(64 + (c >> k & 63)).replace("\\", "\\\\").replace("\x7f", "\\177") for k in (12, 6, 0)]


def mappings():
    """what a code point is replaced by, as text: three characters each, the number of them in front when it is not
    one; '=' the same as the code point before, '>' its last one more, '.' nothing. And the runs: first, last, place."""
    to = {}
    for c in range(N):
        d = ud.decomposition(chars[c])
        if c not in surrogate and d.startswith("<"):
            to[c] = [ord(x) for x in ud.normalize("NFKC", chars[c])]
            assert len(ud.normalize("NFKD", chars[c])) <= 18
        elif is_cjk(c) and c in single:
            to[c] = [single[c][0]]
    out, runs, size = [], [], 0
    for c in sorted(to):
        if not runs or c > runs[-1][1] + 6 or c >= runs[-1][0] + 64:
            runs.append([c, c, size])
            last = None
        while runs[-1][1] + 1 < c:
            runs[-1][1] += 1
            out.append(".")
            size += 1
        runs[-1][1] = c
        t = to[c]
        if t == last:
            item = ["="]
        elif last and t == last[:-1] + [last[-1] + 1]:
            item = [">"]
        else:
            item = [chr(33 + len(t))] * (len(t) > 1) + [x for y in t for x in digits(y)]
        out += item
        size += len(item)
        last = t
    return out, runs


def is_cjk(c):
    return 0xF900 <= c <= 0xFAFF or 0x2F800 <= c <= 0x2FA1F


def strings(items, width=116):
    """pieces of text as lines of string literals"""
    line, out = "", []
    for item in items:
        if len(line) + len(item) > width - 6:
            out.append('    "%s"' % line)
            line = ""
        line += item
    return "\n".join(out + ['    "%s"' % line])


def overlap(blocks):
    """one list that holds every block somewhere, neighbours sharing what the end of one has with the next's beginning"""
    text, rest = "", ["".join(map(chr, b)) for b in blocks]
    while rest:
        best, shared = rest[0], 0
        for b in rest:
            for k in range(BLOCK - 1, shared, -1):
                if text.endswith(b[:k]):
                    best, shared = b, k
                    break
        text += best[shared:]
        rest = [b for b in rest if b not in text[-4 * BLOCK:]]
    return [ord(x) for x in text], [text.index("".join(map(chr, b))) for b in blocks]


def rows(items, width=116):
    line, out = "   ", []
    for item in items:
        if len(line) + 1 + len(item) > width:
            out.append(line)
            line = "   "
        line += " " + item
    return "\n".join(out + [line])


def numbers(values, width=116):
    line, out = "    ", []
    for v in values:
        item = "%d," % v
        if len(line) + len(item) > width:
            out.append(line)
            line = "    "
        line += item
    return "\n".join(out + [line])


def tables():
    kind = kinds()
    count = {}
    for k in kind:
        count[k] = count.get(k, 0) + 1
    # the alphabet of the block strings: printable, without what a C string reads differently; rare kinds are \2xx
    letters = [c for c in range(35, 127) if chr(c) not in '?\\'] + list(range(128, 256))
    order = sorted(count, key=lambda k: (-count[k], k))
    code = dict(zip(order, letters))
    text = lambda k: chr(code[k]) if code[k] < 128 else "\\%o" % code[k]

    number = {k: i for i, k in enumerate(order)}
    blocks, row = {}, []
    for b in range(0, LIMIT, BLOCK):
        row.append(blocks.setdefault(tuple(number[k] for k in kind[b:b + BLOCK]), len(blocks)))
    together, places = overlap(list(blocks))
    index = [places[r] for r in row]
    high = []
    for c in range(LIMIT, N):
        if high and high[-1][1] == kind[c]:
            high[-1][0] = c
        else:
            high.append([c, kind[c]])

    rest = sorted(c for c in single if not is_cjk(c))
    place = {c: i for i, c in enumerate(rest)}
    composed = [place[pairs[p]] for p in sorted(pairs)]

    ranges = []      # lower case: where what to add changes; the kind says whether there is any
    for c in sorted(lower):
        if len(lower[c]) > 1:
            assert c == 0x130 and lower[c] == [0x69, 0x307]
        elif not ranges or ranges[-1][1] != lower[c][0] - c:
            ranges.append([c, lower[c][0] - c])

    table = [0] * (max(letters[:len(order)]) + 1 - 35)
    for k in order:
        table[code[k] - 35] = k
    out = [BEGIN]
    out.append("/* What a code point is: bits 0..12 its class, 13 not certainly NFC, 14 decomposes, 15 has a lower case,")
    out.append(" * 16..23 the canonical combining class, 24 has a compatibility mapping, 25 newer than the normal forms of Hugging")
    out.append(" * Face, 26..28 what it does in a grapheme cluster, 29..31 BERT says otherwise: mark, punctuation, format character.")
    out.append(" * %d kinds; a block names them by the characters from '#'. */" % len(order))
    out.append("static const uint32_t fti_cp_kinds[%d] = {\n%s\n};" % (len(table), numbers(table)))
    byte = [0] * 256
    for k in order:
        byte[code[k]] = k & 255
    out.append("/* The low eight bits of a kind, by the character that names it. */")
    out.append("static const uint8_t fti_kind_class[256] = {\n%s\n};" % numbers(byte))
    out.append("/* The kinds of 64 code points after each other; such blocks overlap where they can. */")
    out.append("static const unsigned char fti_cp_blocks[] =\n%s;" % strings(text(order[i]) for i in together))
    out.append("/* Where the block of cp >> 6 begins, below U+20000; above it the few ranges that follow. */")
    out.append("static const uint16_t fti_cp_index[%d] = {\n%s\n};" % (len(index), numbers(index)))
    out.append("static const struct { uint32_t last, kind; } fti_cp_high[%d] = {\n%s\n};"
               % (len(high), rows("{0x%X,%d}," % tuple(h) for h in high)))
    plain, words = [], {}
    for b in range(0, 0x10000, BLOCK):
        word = sum((not k & NOT_NFC and not k >> 16 & 255) << i for i, k in enumerate(kind[b:b + BLOCK]))
        plain.append(words.setdefault(word, len(words)))
    out.append("/* A bit for each code point below U+10000 that NFC leaves alone, whatever stands around: the word of its block. */")
    out.append("static const uint8_t fti_nfc_index[%d] = {\n%s\n};" % (len(plain), numbers(plain)))
    out.append("static const uint64_t fti_nfc_plain[%d] = {\n%s\n};" % (len(words), rows("0x%X," % w for w in words)))
    out.append("/* Canonical decompositions, one step: code point, first, second (0: none), by code point. Each is three characters")
    out.append(" * of six bits, from '@' on. */")
    out.append("enum { FTI_N_DECOMPOSITIONS = %d };" % len(rest))
    out.append("static const char fti_decompositions[] =\n%s;"
               % strings(x for c in rest for y in (c,) + single[c] for x in digits(y)))
    out.append("/* Rows of the table above that compose again, by (first, second): two characters each. */")
    out.append("enum { FTI_N_COMPOSITIONS = %d };" % len(composed))
    out.append("static const char fti_compositions[] =\n%s;" % strings(x for i in composed for x in digits(i)[1:]))
    mapped, runs = mappings()
    out.append("/* What compatibility characters, and CJK compatibility ideographs, are replaced by. Three characters for a code")
    out.append(" * point; '!' + n: n of them; '=': as for the code point before; '>': the last one more; '.': nothing. */")
    out.append("static const char fti_mapped[] =\n%s;" % strings(mapped))
    out.append("/* Runs of it: first and last code point, place. */")
    out.append("static const uint32_t fti_mapped_runs[%d][3] = {\n%s\n};"
               % (len(runs), rows("{%d,%d,%d}," % tuple(r) for r in runs).replace("}, {", "},{")))
    out.append("/* Lower case: where a range begins, 65536 and what to add from there on. U+0130 is in the code. */")
    out.append("enum { FTI_N_LOWER = %d };" % len(ranges))
    out.append("static const char fti_lower_ranges[] =\n%s;" % strings(
        x for a, add in ranges for x in digits(a) + digits(add + 65536)))
    fine = categories()
    combined = sorted({r[2] for r in fine})
    out.append("/* Categories that the class does not tell: first code point (three characters), how many, which of")
    out.append(" * these. A bit for each of fti_cp_categories, and above them: a symbol that counts as a letter. */")
    out.append('static const char fti_cp_categories[] = "%s";' % "".join(CATEGORIES))
    out.append("static const uint32_t fti_fine_bits[%d] = {\n%s\n};" % (len(combined), numbers(combined).replace(",", "u,")))
    out.append("enum { FTI_N_FINE = %d };" % len(fine))
    out.append("static const char fti_fine[] =\n%s;" % strings(
        x for a, n, bits in fine for x in digits(a) + digits(n)[2:] + digits(combined.index(bits))[2:]))
    runs = scripts()
    out.append("/* Where runs of a script begin: code point, then number of the script, 2048 more where UnicodeScripts of Hugging Face,")
    out.append(" * which is older, knows none. */")
    out.append("enum { FTI_N_SCRIPT_RUNS = %d };" % len(runs))
    out.append("static const char fti_script_runs[] =\n%s;" % strings(
        x for a, i, known in runs for x in digits(a) + digits(i + 2048 * (not known))[1:]))
    out.append(END)
    return "\n".join(out)


def fnv(chunks):
    h = 0xCBF29CE484222325
    for chunk in chunks:
        for byte in chunk:
            h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def sums():
    yield "class", fnv(k.to_bytes(2, "little") for k in classes)
    for form in FORMS:
        yield form, fnv(ud.normalize(form, chars[c]).encode() for c in range(N) if c not in surrogate)
    yield "lower", fnv("".join(map(chr, lower.get(c, [c]))).encode() for c in range(N) if c not in surrogate)


if __name__ == "__main__":
    if sys.argv[1:] == ["--sums"]:
        for name, value in sums():
            print("%-6s 0x%016xu" % (name, value))
    elif len(sys.argv) == 2:
        with open(sys.argv[1], encoding="utf-8", newline="\n") as f:
            text = f.read()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        made = tables()
        with open(sys.argv[1], "w", encoding="utf-8", newline="\n") as f:
            f.write(before + made + after)
        print("%s: %d bytes of tables" % (sys.argv[1], len(made)))
    else:
        sys.exit(__doc__)
