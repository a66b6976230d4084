#!/usr/bin/env python3
"""make_models.py - small files of every model, decoder and post-processor of tokenizer.json, as Hugging Face tokenizers read them

    build/venv/bin/python tests/golden/make_models.py > tests/golden/models.jsonl

Each line holds a whole tokenizer.json as "file", a text, its ids with what stands around a sentence, and what they decode to.
Made with tokenizers 0.23.3.
"""
import json
from tokenizers import Tokenizer

MARK = "\u2581"
NO, UNK = {"unk_token": None}, {"unk_token": "<unk>"}


def step(kind, **more):
    return dict({"type": kind}, **more)


def chain(name, *steps):
    return {"type": "Sequence", name: list(steps)}


def bpe(pieces, merges, **more):
    vocab = {p: i for i, p in enumerate(["<unk>", "<s>", "</s>"] + pieces)}
    return dict({"type": "BPE", "vocab": vocab, "merges": merges, **UNK}, **more)


def replace(a, b, kind="String"):
    return step("Replace", pattern={kind: a}, content=b)


def template(*parts):
    ids = {"<s>": 1, "</s>": 2}
    return step("TemplateProcessing", single=[{"Sequence": {"id": "A", "type_id": 0}} if p == "A" else {"SpecialToken": {"id": p, "type_id": 0}} for p in parts],
                pair=[{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                special_tokens={k: {"id": k, "ids": [v], "tokens": [k]} for k, v in ids.items()})


ADDED = [{"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
         for i, c in enumerate(("<unk>", "<s>", "</s>"))]
BERT, SPACES = step("BertPreTokenizer"), step("WhitespaceSplit")
BYTES = step("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
PREFIXED = step("ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=False)
META = step("Metaspace", replacement=MARK, prepend_scheme="always", split=True)
NEVER = step("Metaspace", replacement="_", prepend_scheme="never", split=True)
SUFFIX = bpe(["a", "b", "a</w>", "b</w>", ",</w>", "ab</w>", "ba", "bab</w>"], ["a b</w>", "b a", "b ab</w>"], end_of_word_suffix="</w>")
PREFIX = bpe(["a", "b", "##a", "##b", "ab", "##ba", "abba"], ["a ##b", "##b ##a", "ab ##ba"], continuing_subword_prefix="##")
PLAIN = bpe(["a", "b", "c", "ab", "abc", "bc", "1", " ", "aa"], ["b c", "a b", "ab c", "a bc", "a a"])
WORDS = {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "the": 3, "cat": 4, "|": 5, ".": 6, "n't": 7}, **UNK}
LEVEL = bpe(["\u0120", "a", "b", "\u00c3", "\u00a9", "\u0120a", "ab", "\u0120ab"], ["\u0120 a", "a b", "\u0120 ab"], **NO)
SOME = bpe(["a", "b", "ab", "<0xC3>", "<0xA9>"], ["a b"], byte_fallback=True)
PIECES = {"type": "WordPiece", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "the": 3, "##se": 4, ".": 5, MARK + "the": 6, MARK: 7, "'": 8, "s": 9},
          "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 20}
WP = step("WordPiece", prefix="##", cleanup=True)
CTC = step("CTC", pad_token="<unk>", word_delimiter_token="|", cleanup=True)


def strip(content, start, stop):
    return step("Strip", content=content, start=start, stop=stop)


FUSE, FALLBACK = step("Fuse"), step("ByteFallback")
FILES = [     # model, normalizer, pre_tokenizer, decoder, post_processor
    (SUFFIX, None, BERT, step("BPEDecoder", suffix="</w>"), None, ["ab bab, a", "abba", "xbx a,", "", "<s>ab"]),
    (SUFFIX, step("Lowercase"), SPACES, chain("decoders", step("BPEDecoder", suffix="</w>"), FUSE, strip("b", 1, 0)), template("<s>", "A", "</s>"), ["BAB AB", "b" * 20]),
    (dict(SUFFIX, fuse_unk=True), None, BERT, chain("decoders"), step("BertProcessing", sep=["</s>", 2], cls=["<s>", 1]), ["xyab xy", "\u4e2dab"]),
    (dict(SUFFIX, **NO), None, SPACES, None, None, ["bxab axb", "xx", "a\u4e2db " * 5]),
    (dict(SUFFIX, ignore_merges=True), None, SPACES, FUSE, None, ["ba ab a</w>", "bab</w>"]),
    (PREFIX, None, BERT, WP, step("RobertaProcessing", sep=["</s>", 2], cls=["<s>", 1], trim_offsets=True, add_prefix_space=False), ["abba ab", "ba,abb x"]),
    (dict(PREFIX, **NO), None, BERT, chain("decoders", step("WordPiece", prefix="##", cleanup=False), replace("abb", "[")), None, ["abxba", "aaaa"]),
    (PLAIN, None, None, None, None, ["abc 1", "aaaabcbc", "xab<s>c x", "a" * 33, "abc" * 200, "ab\u00e9c"]),
    (dict(PLAIN, **NO), None, None, FUSE, chain("processors", BYTES, template("A", "</s>")), ["axb", "\u00e9", "abxc" * 150, "ab" + "x" * 600 + "c"]),
    (dict(PLAIN, ignore_merges=True, fuse_unk=True, dropout=0.0), None, SPACES, chain("decoders", replace("b", ""), strip("a", 2, 0)),
     chain("processors", step("BertProcessing", sep=["</s>", 2], cls=["<s>", 1]), template("<s>", "A")), ["bc abc xx", "aab"]),
    (WORDS, None, SPACES, None, template("<s>", "A"), ["the cat the dog", "<s> the", " "]),
    (WORDS, None, BERT, chain("decoders", replace("[aeiou]|t?\\b", "-", "Regex"), FUSE, replace("(?<=-)t", "", "Regex")), None, ["the cat . n't", ""]),
    (WORDS, step("Lowercase"), BERT, CTC, None, ["The cat cat | the ?? the.", "cat n't"]),
    (LEVEL, None, BYTES, BYTES, None, ["ab ab\u00e9", "a xb"]),
    (LEVEL, step("Lowercase"), BYTES, None, None, []),
    (dict(LEVEL, fuse_unk=True, **UNK), None, PREFIXED, chain("decoders", BYTES, strip(" ", 1, 0)), None, ["ab xyz\u00e9", "b"]),
    (dict(LEVEL, ignore_merges=True), chain("normalizers", step("NFC"), step("Lowercase")), BYTES, chain("decoders", BYTES), template("<s>", "A"), ["AB aBe\u0301", "ab"]),
    (dict(bpe(["a", "b", "b</w>", "\u0120", "\u0120a", "ab</w>", "\u00a9</w>", "\u00c3"], ["a b</w>", "\u0120 a"], end_of_word_suffix="</w>")), step("Lowercase"), BYTES,
     chain("decoders", replace("</w>", ""), BYTES), template("<s>", "A", "</s>"), ["Ab aB \u00e9", "a b"]),
    (SOME, None, SPACES, chain("decoders", FALLBACK, NEVER), None, ["ab\u00e9", "\u00e9\u00e9 b"]),
    (dict(SOME, **NO), None, None, FALLBACK, None, ["\u00e9a\u00e8b", "\u00c3"]),
    (PIECES, None, META, chain("decoders", META, WP), template("<s>", "A", "</s>"), ["the these", " the"]),
    (PIECES, None, BERT, WP, None, ["these the . the's", "thex the"]),
]


def more(model, *tokens):
    """Tokens with flags, added behind a vocabulary or as its own."""
    vocab, new = model["vocab"], len(model["vocab"])
    ids = vocab if isinstance(vocab, dict) else {p: i for i, (p, _) in enumerate(vocab)}
    list = []
    for t in tokens:
        content, *flags = t if isinstance(t, tuple) else (t,)
        id = ids.get(content, new)
        new += id == new
        list.append(dict(ADDED[0], id=id, content=content, **{"special": False, **{f: True for f in flags}}))
    return sorted(ADDED + list, key=lambda t: t["id"])


LOWER, NFKC = step("Lowercase"), step("NFKC")
AFFIXED = bpe(["<0x%02X>" % b for b in sorted(set("4</w>\u00e9".encode()))] + ["a", "a</w>", "wa"], [], byte_fallback=True)
FIRST = step("Metaspace", replacement=MARK, prepend_scheme="first", split=True)
WORLD = {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "world": 3, MARK + "world": 4, "wworld": 5, MARK + "wworld": 6}, **UNK}
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], [MARK, -3.0], [MARK + "a", -2.0], ["a", -4.0], ["b", -4.5],
                                                     ["ab", -5.0], ["<", -7.0], ["s", -7.0], ["/", -7.0], [MARK + "b", -5.0]]}
ADDITIONS = [     # the same with added tokens
    # A token that the model does not know is never made by it.
    (WORDS, LOWER, SPACES, None, None, ["TOK the tok"], more(WORDS, "tok")),
    (PIECES, LOWER, SPACES, WP, None, ["THEX thex THESE", "thexse"], more(PIECES, "thex", "##x")),
    (PLAIN, None, None, FUSE, None, ["a\u00e9 \u00e9", "ad d"], more(PLAIN, ("\u00e9", "single_word"), ("d", "single_word"))),
    (SUFFIX, None, SPACES, None, None, ["x x"], more(SUFFIX, ("x</w>", "single_word"))),
    (LEVEL, None, PREFIXED, BYTES, None, ["b", "ac c", " b"], more(LEVEL, " ", ("c", "single_word"))),
    # A control token that it knows is made as any other.
    (UNIGRAM, NFKC, META, META, None, ["\uff1c/s\uff1ea \uff1cs\uff1e", "a\uff1cunk\uff1e", "aab bxb<s", "abb\uff1c/s\uff1e ab"], more(UNIGRAM, ("b", "single_word", "special"), ("ab", "single_word", "special"))),
    (WORDS, LOWER, SPACES, None, None, ["<S> The CAT", "cat <s> thecat"], more(WORDS, ("cat", "single_word", "special"))),
    (PIECES, LOWER, SPACES, WP, None, ["<S> </S>the THESE", "xthe these <UNK>"], more(PIECES, ("##se", "special"), ("the", "special", "single_word"))),
    (PLAIN, None, None, None, None, ["xabc", "abcabc abc", "bcb b abcbc"], more(PLAIN, ("bc", "single_word", "special"), ("b", "single_word", "special"))),
    (PLAIN, None, SPACES, None, None, ["aab aa", "abaa abc"], more(PLAIN, ("aa", "single_word", "special"))),
    (dict(PLAIN, ignore_merges=True), LOWER, SPACES, None, None, ["ABC aab BC", "abc"], more(PLAIN, ("abc", "special"), ("bc", "special"))),
    (SUFFIX, None, SPACES, None, None, ["ab bab", "a b ba"], more(SUFFIX, ("ab</w>", "special"), ("a</w>", "special"))),
    # White space that a token swallows may be another one.
    (PLAIN, None, None, FUSE, None, ["  ", "ab   b"], more(PLAIN, (" ", "rstrip"))),
    (PLAIN, None, None, FUSE, None, ["<e>\na", "<e> \n  b", "a\n\n<e>\n\n\na", "<e>\n"],
     more(PLAIN, ("<e>", "rstrip", "lstrip", "special"), "\n")),
    (PLAIN, LOWER, None, FUSE, None, ["<E>\na<e> \n <e>b", "  \n\n<E>"], more(PLAIN, ("<e>", "rstrip", "normalized"), ("\n", "normalized"), "\n\n")),
    (PLAIN, None, None, FUSE, None, ["<e> a", "<e>\n a\n"], more(PLAIN, ("<e>", "rstrip"), (" ", "lstrip"), ("\n", "rstrip"))),
    # A character becomes the bytes of itself and its affixes, or none of them.
    (dict(bpe(["<0x34>", "a</w>"], [], end_of_word_suffix="</w>", byte_fallback=True), **NO), None, SPACES, None, None, ["4", "44a 4a"], ADDED),
    (dict(AFFIXED, end_of_word_suffix="</w>"), None, SPACES, None, None, ["4 \u00e9 4\u00e9x 4a", "aaa4"], ADDED),
    (dict(AFFIXED, continuing_subword_prefix="w", unk_token=None), None, SPACES, FALLBACK, None, ["4 \u00e9 4\u00e9x 4a", "4x\u00e94"], ADDED),
    (dict(UNIGRAM, byte_fallback=True, vocab=UNIGRAM["vocab"] + [["<0x%02X>" % b, -9.0] for b in range(256)]), None, None, FALLBACK, None, ["<unk>", "a\u00e9b<unk>a", "\u00e9<unk>a<unk>\u00e9<unk>", "<unk><unk>b<unk> <unk><s>"], []),
    (UNIGRAM, None, None, FUSE, None, ["<unk>", "ax<unk>a"], []),
    # Only what stands at the beginning of the text itself is first.
    (WORLD, step("Strip", strip_left=True, strip_right=False), FIRST, None, None, [" world", "world", "<s>world"]),
    (WORLD, chain("normalizers", replace("[ab]", "", "Regex"), LOWER, NFKC), FIRST, None, None, ["aWORLD", "World world", "wbworld", "\uff37orld"]),
    (WORLD, step("Prepend", prepend="w"), FIRST, None, None, ["orld", "world"], []),
    (WORLD, LOWER, chain("pretokenizers", SPACES, FIRST), None, None, [" world World", "world"], more(WORLD, ("w", "normalized"))),
]
for model, normalizer, pre, decoder, post, texts, *added in FILES + ADDITIONS:
    file = {"version": "1.0", "added_tokens": added[0] if added else ADDED, "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model}
    tok = Tokenizer.from_str(json.dumps(file))
    for text in texts:
        ids = tok.encode(text).ids
        print(json.dumps({"file": file, "text": text, "ids": ids, "decoded": tok.decode(ids, skip_special_tokens=False)}, ensure_ascii=False))
