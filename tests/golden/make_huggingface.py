#!/usr/bin/env python3
"""make_huggingface.py - offsets, and the odd corners of tokenizer.json, as Hugging Face tokenizers has them

    build/venv/bin/python tests/golden/make_huggingface.py > tests/golden/huggingface.jsonl

Each line holds a whole tokenizer.json as "file", a text, its ids with what stands around a sentence, the offsets of these in
bytes, what they decode to, and what each id is shown as. Tokens behind the sentence have their offsets at its end, where the
original has 0. Made with tokenizers 0.23.3 (until 0.22 an added token was shown as the file writes it, never normalised).
"""
import json

from tokenizers import Tokenizer

MARK = "\u2581"
BYTES = {"</s>": 0, "<s>": 1, "a": 2, "b": 3, "\u0120": 4, "\u0120a": 5, "\u00c3": 6, "\u00a9": 7, "\u010a": 8, "\u0120\u0120": 9}
CHARS = {"?": 0, "a": 1, "b": 2, "ab": 3, "\u00e9": 4, MARK: 5, MARK + "a": 6, MARK + "b": 7}
PIECES = [["?", 0.0], ["a", -1.0], ["b", -1.0]]


def step(kind, **more):
    return dict(type=kind, **more)


def chain(name, *steps):
    return {"type": "Sequence", name: list(steps)}


def level(prefix, trim, regex=True):
    return step("ByteLevel", add_prefix_space=prefix, trim_offsets=trim, use_regex=regex)


def roberta(prefix, trim):
    return step("RobertaProcessing", sep=["</s>", 0], cls=["<s>", 1], trim_offsets=trim, add_prefix_space=prefix)


def metaspace(scheme):
    return step("Metaspace", replacement=MARK, prepend_scheme=scheme, split=True)


def replace(a, b):
    return step("Replace", pattern={"String": a}, content=b)


def added(i, content, *flags):
    return dict(id=i, content=content, **{f: f in flags for f in ("single_word", "lstrip", "rstrip", "normalized", "special")})


def bpe(vocab, *merges, **more):
    return dict(step("BPE", vocab=vocab, merges=[m.split("|") for m in merges], unk_token=None), **more)


def template(*parts):
    return step("TemplateProcessing", single=[{"Sequence": {"id": "A", "type_id": 0}} if p == "A" else {"SpecialToken": {"id": p, "type_id": 0}} for p in parts],
                pair=[{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                special_tokens={"b": {"id": "b", "ids": [], "tokens": []}})


def bytes_(**more):
    return bpe(BYTES, "\u0120|a", "\u0120|\u0120", **more)


def chars():
    return bpe(CHARS, "a|b", MARK + "|a", MARK + "|b", unk_token="?")


def unigram(**more):
    return step("Unigram", unk_id=0, vocab=PIECES, **more)


BERT = step("BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True)
LOWER, NFC, NFKC, WORDS = step("Lowercase"), step("NFC"), step("NFKC"), step("WordLevel", unk_token="?", vocab=CHARS)
PLAIN = level(False, False)
ODD = {"\n": 0, "\u010a": 1, "a": 2, "\na": 3, "\u010aa": 4, "\u0120": 5, " ": 6, "x y": 7}
AB = {"a": 0, "b": 1, "ab": 2, "\u0120": 3, "\u0120ab": 4}
ROWS = [      # what the file says, its model, texts
    # white space that does not count
    (dict(pre_tokenizer=level(False, True), post_processor=level(False, True)), bytes_(), "a a  b \u00e9 "),
    (dict(pre_tokenizer=level(True, True), post_processor=level(True, True)), bytes_(), "a  a", " a", "  a", "b"),
    (dict(pre_tokenizer=level(True, True), post_processor=level(False, True)), bytes_(), "ab a", " a"),
    (dict(pre_tokenizer=level(False, True), post_processor=level(True, True)), bytes_(), " a\n a", "  a"),
    (dict(pre_tokenizer=level(False, True), post_processor=PLAIN), bytes_(), " a\u00e9"),
    (dict(pre_tokenizer=level(True, True), post_processor=roberta(True, True)), bytes_(), "a  \u00e9 a "),
    (dict(pre_tokenizer=level(True, True), post_processor=chain("processors", roberta(False, False), level(True, True))), bytes_(), "\u00e9 a", "  a"),
    (dict(pre_tokenizer=level(True, True), post_processor=chain("processors", level(True, True), roberta(False, True))), bytes_(), "a a  a"),
    (dict(added_tokens=[added(10, "x", "lstrip", "rstrip", "special")], pre_tokenizer=PLAIN, post_processor=roberta(False, True)), bytes_(), "a x\u3000 b"),
    (dict(added_tokens=[added(10, "x", "lstrip", "normalized")], normalizer=step("Prepend", prepend=" "), pre_tokenizer=PLAIN,
          post_processor=level(False, True)), bytes_(), "a  xb"),
    (dict(post_processor=level(False, True)), unigram(), "a xy\n b"),
    (dict(pre_tokenizer=metaspace("always"), post_processor=level(False, True)), unigram(), "a xy\n b"),
    # where it came from
    (dict(), unigram(), "a xy\n b"),
    (dict(normalizer=NFC), chars(), "e\u0301ab", "aq\u0301\u0323b"),
    (dict(normalizer=step("NFD")), chars(), "a\u0323\u0301b", "\u1ed9\u0323b"),
    (dict(normalizer=step("StripAccents")), chars(), "a\u0301b"),
    (dict(normalizer=replace("xy", "a")), chars(), "xyb"),
    (dict(pre_tokenizer=chain("pretokenizers", step("WhitespaceSplit"), metaspace("always"))), chars(), "a  b"),
    (dict(pre_tokenizer=step("BertPreTokenizer"), normalizer=BERT), step("WordPiece", unk_token="?", continuing_subword_prefix="##",
     max_input_chars_per_word=9, vocab={"?": 0, "e": 1, "##b": 2, "\u4e2d": 3}), "e\u0301B\u4e2d x\u0301!"),
    (dict(pre_tokenizer=PLAIN), bytes_(unk_token="<s>"), "aq\u00e9"),
    (dict(pre_tokenizer=level(False, False, False)), bytes_(unk_token="<s>", ignore_merges=True), "<s>", "<s", "<"),
    # the beginning of the text, for Metaspace
    (dict(normalizer=replace("xy", "a"), pre_tokenizer=metaspace("first")), chars(), "xyb ab", "ab xy"),
    (dict(normalizer=step("Prepend", prepend="ab"), pre_tokenizer=chain("pretokenizers", step("FixedLength", length=1), metaspace("first"))), chars(), "ba"),
    # added tokens are shown as they are looked for
    (dict(added_tokens=[added(8, "<S>", "normalized"), added(9, "<T>")], normalizer=LOWER), WORDS, "<S>a<s><T>"),
    (dict(added_tokens=[added(8, "<S>", "normalized", "special")], normalizer=LOWER, decoder=step("WordPiece", prefix="##", cleanup=False)), WORDS, "<S>a<s>"),
    (dict(added_tokens=[added(8, "e\u0301", "normalized")], normalizer=NFC, decoder=step("Fuse")), WORDS, "e\u0301a\u00e9x"),
    (dict(added_tokens=[added(8, "x", "normalized")], normalizer=step("Prepend", prepend=MARK), decoder=metaspace("always")), WORDS, "xa", "x"),
    (dict(added_tokens=[added(8, "x y", "normalized")], normalizer=replace(" ", MARK), decoder=chain("decoders", replace(MARK, "_"))), WORDS, "x y"),
    (dict(added_tokens=[added(8, "X", "normalized")], normalizer=LOWER), dict(unigram(), vocab=PIECES + [[c, -9.0] for c in "cdefg"]), "aXx"),
    (dict(added_tokens=[added(10, "<\u00c9>", "normalized"), added(11, "\u00c3\u00a9", "normalized"), added(12, "\u0126")], normalizer=LOWER,
          pre_tokenizer=PLAIN, decoder=PLAIN), bytes_(), "<\u00c9>a<\u00e9>", "\u00c3\u00a9b", "\u0126"),
    # ignore_merges, and tokens that no merge makes
    *[(dict(added_tokens=[added(2, "ab", "single_word", *flags)], normalizer=NFKC, pre_tokenizer=chain("pretokenizers", step(
        "Split", pattern={"Regex": "[xX]"}, behavior="Isolated", invert=False), level(False, False, False))),
       bpe(AB, *merges, ignore_merges=True), "ab", "xab", "\uff41b", "x\uff41b ab", " ab", "aab")
      for flags in (["special"], ["special", "normalized"], [], ["normalized"]) for merges in ([], ["a|b"])],
    # a vocabulary of spelled bytes with texts that spell none
    *[(dict(pre_tokenizer=PLAIN, decoder=decoder), bpe(ODD, "\n|a", "\u010a|a", ignore_merges=whole), "\na a\n x y")
      for whole in (False, True) for decoder in (PLAIN, step("Fuse"))],
    (dict(added_tokens=[added(2, "a", "special", "single_word")], pre_tokenizer=PLAIN), bpe(ODD, ignore_merges=True), "\na a\n aa", "\naa\n"),
    # added tokens that read as the letters of bytes, and are their ids
    *[(dict(added_tokens=[added(6, "\u00c3", flag), added(9, "\u0120\u0120")], pre_tokenizer=PLAIN, normalizer=NFC, decoder=decoder), bytes_(), "\u00c3a\u00e9  \u0120\u0120")
      for flag in ("special", "normalized") for decoder in (PLAIN, step("Fuse"))],
    # a template that adds nothing
    (dict(post_processor=chain("processors", template("A", "b"), level(True, True))), chars(), "ab"),
]


def main():
    for parts, model, *texts in ROWS:
        file = dict(dict(version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None, pre_tokenizer=None, post_processor=None,
                         decoder=step("Fuse")), **parts)
        tok = Tokenizer.from_str(json.dumps(dict(file, model=model)))
        for text in texts:
            e, at = tok.encode(text), [0]
            for c in text:
                at.append(at[-1] + len(c.encode()))
            offsets = [[at[a], at[b]] for a, b in e.offsets]
            if "RobertaProcessing" in json.dumps(parts):
                offsets[-1] = [at[-1], at[-1]]
            print(json.dumps({"file": dict(file, model=model), "text": text, "ids": e.ids, "offsets": offsets, "decoded": tok.decode(
                e.ids, skip_special_tokens=False), "shown": [tok.id_to_token(i) for i in e.ids]}, ensure_ascii=False))


if __name__ == "__main__":
    main()
