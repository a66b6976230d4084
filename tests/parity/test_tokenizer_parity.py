#!/usr/bin/env python3
"""test_tokenizer_parity.py - byte-level BPE against tiktoken and Hugging Face tokenizers, on seeded random strings

    build/venv/bin/python tests/parity/test_tokenizer_parity.py [--n 20000] [--full] [--only NAME,NAME] [--seed 1]

Vocabularies are looked for in $FTUNE_SHARED (default ../shared); a family without its file is skipped. Needs tiktoken,
tokenizers, unicodedata2 (Unicode 16, for NFC in front of tiktoken) and a C compiler. See many_texts.py.
"""
import base64
import os
import sys

from many_texts import ADD, PARSE, TEXT, VOCAB, Family, Ours, main

C = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
P = r"[^\r\n\p{L}\p{N}]?"
CL100K = C + "|" + P + r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
QWEN = CL100K.replace("{1,3}", "")


def cased(u, w, tail):
    return P + u + "*" + w + "+" + C + "?|" + P + u + "+" + w + "*" + C + "?" + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+" + tail + TAIL


U, W = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}"
O200K = cased(U + "]", W + "]", r"[\r\n/]*")
KIMI = r"[\p{Han}]+|" + cased(U + r"&&[^\p{Han}]]", W + r"&&[^\p{Han}]]", r"[\r\n]*")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def tiktoken_of(path, pattern):
    import tiktoken
    ranks = {}
    with open(path, "rb") as f:
        for line in f:
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
    return tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def by_tiktoken(path, pattern, nfc=False):
    enc = tiktoken_of(path, pattern)

    def encode(texts):
        if nfc:
            import unicodedata2
            texts = [unicodedata2.normalize("NFC", t) for t in texts]
        return enc.encode_ordinary_batch(texts, num_threads=1)
    return encode, lambda lists: enc.decode_batch(lists, num_threads=1), enc.n_vocab


def by_huggingface(tok, special=False):
    return (lambda texts: [e.ids for e in tok.encode_batch(texts, add_special_tokens=special)],
            lambda lists: tok.decode_batch(lists, skip_special_tokens=False), tok.get_vocab_size())


def by_file(path, special=False):
    from tokenizers import Tokenizer
    return by_huggingface(Tokenizer.from_file(path), special)


def by_pair(path, regex_of, nfc):
    """vocab.json and merges.txt, as Hugging Face reads them."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    tok = Tokenizer(models.BPE.from_file(path, os.path.join(os.path.dirname(path), "merges.txt")))
    if nfc:
        tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex_of), "isolated"),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    return by_huggingface(tok)


# name: file, what control tokens in the text become, how the other program is made
FAMILIES = {
    "qwen": ("qwen/qwen.tiktoken", TEXT, lambda p: by_tiktoken(p, QWEN, True)),
    "cl100k": ("cl100k_base/cl100k_base.tiktoken", TEXT, lambda p: by_tiktoken(p, CL100K)),
    "o200k": ("o200k_base/o200k_base.tiktoken", TEXT, lambda p: by_tiktoken(p, O200K)),
    "llama3": ("llama3/tokenizer.model", TEXT, lambda p: by_tiktoken(p, CL100K)),
    "kimi": ("kimi-k2/tiktoken.model", TEXT, lambda p: by_tiktoken(p, KIMI)),
    "gpt2": ("gpt2/vocab.json", TEXT, lambda p: by_pair(p, GPT2, False)),
    "qwen2-pair": ("qwen2/vocab.json", TEXT, lambda p: by_pair(p, QWEN, True)),
    "qwen3": ("qwen2/tokenizer.qwen3.json", PARSE, by_file),
    "roberta": ("roberta-base/tokenizer.json", PARSE | ADD, lambda p: by_file(p, True)),
}


def families(lib):
    for name, (file, special, other) in FAMILIES.items():
        path = os.path.join(VOCAB, file)

        def make(path=path, special=special, other=other):
            encode, decode, n_ids = other(path)
            return Family(Ours(lib, path, special), encode, decode, n_ids)
        yield name, make if os.path.exists(path) else "no %s" % path


if __name__ == "__main__":
    sys.exit(main(__doc__, families, "tiktoken", "tokenizers", "unicodedata2"))
