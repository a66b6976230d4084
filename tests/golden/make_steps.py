#!/usr/bin/env python3
"""make_steps.py - normalizers and pre-tokenizers of tokenizer.json, as Hugging Face tokenizers do them

    build/venv/bin/python tests/golden/make_steps.py > tests/golden/steps.jsonl

The first line holds a model (BPE, bytes for what is no piece), each further one a normalizer, a pre_tokenizer, a text, its
ids and what they decode to. Made with tokenizers 0.23.3.
"""
import json
import sys
from tokenizers import Tokenizer

MARK = "\u2581"
pieces = [MARK, "a", "b", "ab", MARK + "a", "aa", MARK + "ab", "1", "2", "12", ",", "a,", ",a", " ", " a", "A", "e", "f", "i", "fi", '"', "a1", "1a"]
vocab = {"<unk>": 0, **{"<0x%02X>" % b: b + 1 for b in range(256)}}
for p in pieces:
    vocab[p] = len(vocab)
merges = [["a", "b"], [MARK, "a"], ["a", "a"], [MARK, "ab"], ["1", "2"], ["a", ","], [",", "a"], [" ", "a"], ["f", "i"], ["a", "1"], ["1", "a"]]
model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocab, "merges": merges}
decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"},
                                            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}


def t(kind, **more):
    return dict({"type": kind}, **more)


def split(pattern, behavior, kind="Regex", invert=False):
    return t("Split", pattern={kind: pattern}, behavior=behavior, invert=invert)


def replace(pattern, content, kind="String"):
    return t("Replace", pattern={kind: pattern}, content=content)


def both(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def cuts(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


texts = ["ab aab", " ab  ab ", "a\ufb01 e\u0301\u0323", "a12,1ab,,a a,b"]
marks = "a\U0001d16d\U0001d165 \u08d3\u0301 \u32ff \U00010efd\u0316 \uff21\u212b"
rows = [(n, None, x) for n in (t("NFC"), t("NFD"), t("NFKC"), t("NFKD"), t("StripAccents"), t("Lowercase"), t("Nmt"),
                               t("BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True))
        for x in (texts[2], marks, "A\u200b\u00e9\u4e2d\x01b")]
rows += [(t("Strip", strip_left=True, strip_right=False), None, texts[1]), (t("Prepend", prepend=MARK), None, texts[0]),
         (replace(" ", MARK), None, texts[1]), (replace(" {2,}", "1", "Regex"), None, texts[1]), (replace("\\s+", "b", "Regex"), None, "a \n a"),
         (replace("[\\n\\r\\t]", " ", "Regex"), None, "a\n\ta"),
         (both(t("NFKD"), both(t("StripAccents"), t("Lowercase")), replace("``", '"')), None, "``\u00c5\ufb01 \u00e9")]
meta = [t("Metaspace", replacement=MARK, prepend_scheme=s, split=c) for s in ("always", "first", "never") for c in (True, False)]
rows += [(None, m, x) for m in meta for x in texts[:2]]
behaviors = ("Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext")
rows += [(None, split(p, b, k, i), texts[3]) for p, k in ((",", "String"), ("\\p{N}", "Regex"), ("[0-9][0-9][0-9]", "Regex"))
         for b in behaviors for i in (False, True)]
rows += [(None, t("Punctuation", behavior=b), texts[3]) for b in behaviors]
rows += [(None, p, texts[3]) for p in (t("Digits", individual_digits=True), t("Digits", individual_digits=False), t("WhitespaceSplit"),
                                       t("BertPreTokenizer"), t("CharDelimiterSplit", delimiter=","),
                                       cuts(t("WhitespaceSplit"), cuts(t("Digits", individual_digits=True)), meta[0]))]
print(json.dumps({"model": model, "decoder": decoder}))
for normalizer, pre, text in rows:
    tok = Tokenizer.from_str(json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer,
                                         "pre_tokenizer": pre, "post_processor": None, "decoder": decoder, "model": model}))
    ids = tok.encode(text).ids
    print(json.dumps({"normalizer": normalizer, "pre_tokenizer": pre, "text": text, "ids": ids, "decoded": tok.decode(ids)}))
