#!/usr/bin/env python3
"""test_published_parity.py - vocabularies of DeepSeek, Falcon and StarCoder, cut as their tokenizer.json says

    build/venv/bin/python tests/parity/test_published_parity.py [--n 20000] [--full] [--only NAME,NAME] [--seed 1]

The vocabularies are those of llama.cpp's ggml-vocab-*.gguf in $FTUNE_SHARED/vocab/llama.cpp, written as tokenizer.json with
the pre-tokenizers their models publish. First the 46 strings of the .inp file must give the ids of the .out file, which
are Hugging Face's for the published tokenizer; then random strings are compared with Hugging Face tokenizers (many_texts.py).
"""
import json
import os
import struct
import sys

from many_texts import BUILD, PARSE, VOCAB, Ours, main
from test_sentencepiece_parity import by_huggingface, sequence, split, step

MARK = b"\n__ggml_vocab_test__\n"
# letters with case, as DeepSeek writes them; escapes where composed forms would read alike
LETTERS = ("A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\u1F5F-\u1F7D\u1F80-\u1FB4"
           "\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB\u1FE0-\u1FEC\u1FF2-\u1FF4\u1FF6-\u1FFCℂℇℊ-ℓℕℙ-ℝ"
           "ℤ\u2126ℨ\u212A-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ\U00010400-\U0001044f\U000104b0-\U000104d3"
           "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943")
CJK = split("[一-龥ࠀ-一가-퟿]+", "Isolated")
BYTES = step("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
GPT2 = step("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
PRE = {
    "deepseek-llm": [split("[\r\n]", "Isolated"), split("\\s?[%s]+" % LETTERS, "Isolated"), split("\\s?[!-/:-~！-／：-～‘-‟　-。]+", "Isolated"),
                     split("\\s+$", "Isolated"), CJK, step("Digits", individual_digits=True), BYTES],
    "deepseek-coder": [split("[\r\n]", "Isolated"), split("\\s?\\p{L}+", "Isolated"), split("\\s?\\p{P}+", "Isolated"), CJK,
                       step("Digits", individual_digits=True), BYTES],
    "falcon": [step("Punctuation", behavior="Contiguous"), GPT2, step("Digits", individual_digits=False), split("[0-9][0-9][0-9]", "Isolated")],
    "starcoder": [step("Digits", individual_digits=True), GPT2],
}


def gguf(path):
    """the keys and values of a GGUF file"""
    with open(path, "rb") as f:
        data = f.read()
    at = 8

    def number(kind):
        nonlocal at
        value = struct.unpack_from("<" + kind, data, at)[0]
        at += struct.calcsize(kind)
        return value

    def text():
        nonlocal at
        n = number("Q")
        at += n
        return data[at - n:at].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            kind, n = number("I"), number("Q")
            return [value(kind) for _ in range(n)]
        return number({0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}[kind])

    number("Q")
    return {text(): value(number("I")) for _ in range(number("Q"))}


def written(name, path):
    """the path of the tokenizer.json made from it"""
    kv = gguf(path)
    tokens, kind = kv["tokenizer.ggml.tokens"], kv["tokenizer.ggml.token_type"]
    last = max(i for i, k in enumerate(kind) if k == 1)         # what was added later is not in the model's vocabulary
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": k == 3}
             for i, (t, k) in enumerate(zip(tokens, kind)) if k in (3, 4)]
    out = {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": sequence("pretokenizers", *PRE[name]),
           "post_processor": None, "decoder": step("ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
           "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens[:last + 1])}, "merges": kv["tokenizer.ggml.merges"]}}
    made = os.path.join(BUILD, "gguf-%s.json" % name)
    with open("%s.%d" % (made, os.getpid()), "w", encoding="utf-8") as f:      # other processes make the same file
        json.dump(out, f, ensure_ascii=False)
    os.replace(f.name, made)
    return made


def golden(ours, path):
    with open(path + ".inp", "rb") as f:
        texts = [t.decode() for t in f.read().split(MARK)[:-1]]
    with open(path + ".out") as f:
        lines = [[int(x) for x in line.split()] for line in f]
    ids, counts = ours.encode(texts)
    at = 0
    for text, expected, n in zip(texts, lines, counts):
        if list(ids[at:at + n]) != expected:
            raise SystemExit("%s: %r: expected %s, found %s" % (path, text, expected, list(ids[at:at + n])))
        at += n


def families(lib):
    from tokenizers import Tokenizer

    def family(name, path):
        made = written(name, path)
        ours = Ours(lib, made, PARSE)
        golden(ours, path)
        return by_huggingface(ours, Tokenizer.from_file(made))

    for name in PRE:
        path = os.path.join(VOCAB, "llama.cpp", "ggml-vocab-%s.gguf" % name)
        yield name, (lambda n=name, p=path: family(n, p)) if os.path.exists(path) else "no %s" % path


if __name__ == "__main__":
    sys.exit(main(__doc__, families, "tokenizers"))
