#!/usr/bin/env python3
"""test_sentencepiece_parity.py - WordPiece and SentencePiece against the originals, on seeded random strings

    build/venv/bin/python tests/parity/test_sentencepiece_parity.py [--n 20000] [--full] [--only NAME,NAME] [--seed 1]

Needs PyPI tokenizers and sentencepiece in the environment, a C compiler, and vocabularies in $FTUNE_SHARED (default
../shared). ftune.h follows SentencePiece 0.1: version 0.2 rounds the sums of Unigram at another place, so that ties between
equally good paths ("....") fall differently, and takes a piece that is U+0000 (InternLM2) for unused. 0.1.98 is found in
    build/venv/bin/pip install --no-deps --target build/sentencepiece_0.1 sentencepiece==0.1.98
and with 0.2 alone the Unigram models are left out. See many_texts.py.

The families made-* are the files of phi-3, t5-small, bert and roberta with other normalizers and pre-tokenizers, as other published
models have them: what those do is checked, with a vocabulary that is at hand. The families learnt-* are .model files of BPE that
sentencepiece learns here from the random strings.
"""
import json
import os
import sys

from many_texts import BUILD, PARSE, ROOT, TEXT, VOCAB, Family, Ours, main, texts_of

OLD_SENTENCEPIECE = os.path.join(ROOT, "build", "sentencepiece_0.1")
if os.path.isdir(OLD_SENTENCEPIECE):
    sys.path.insert(0, OLD_SENTENCEPIECE)


def by_huggingface(ours, tok):
    vocab = tok.get_vocab()
    return Family(ours, lambda texts: [e.ids for e in tok.encode_batch(texts, add_special_tokens=False)],
                  lambda lists: tok.decode_batch(lists, skip_special_tokens=False), tok.get_vocab_size(),
                  [vocab["<0x%02X>" % b] for b in range(256) if "<0x%02X>" % b in vocab])


def by_sentencepiece(ours, path):
    import sentencepiece
    sp = sentencepiece.SentencePieceProcessor(model_file=path)
    return Family(ours, lambda texts: sp.encode(texts, num_threads=1), lambda lists: sp.decode(lists, num_threads=1),
                  sp.get_piece_size(), [i for i in range(sp.get_piece_size()) if sp.is_byte(i)])


def bert(path, lower):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    with open(path, encoding="utf-8", newline="\n") as f:       # as BertTokenizer reads it; from_file would strip "##\u2028"
        vocab = {line.rstrip("\r\n"): i for i, line in enumerate(f)}
    tok = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    tok.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tok


def step(kind, **more):
    return dict({"type": kind}, **more)


def sequence(name, *steps):
    return {"type": "Sequence", name: list(steps)}


def replace(pattern, content, kind="String"):
    return step("Replace", pattern={kind: pattern}, content=content)


def split(pattern, behavior, kind="Regex", invert=False):
    return step("Split", pattern={kind: pattern}, behavior=behavior, invert=invert)


MARK = "\u2581"
META = step("Metaspace", replacement=MARK, prepend_scheme="always", split=True)
BYTES = step("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
MADE = {     # name: file, normalizer (None: its own), pre_tokenizer, and another model, made from the file, if wanted
    "made-gemma": ("phi-3", replace(" ", MARK), split(" ", "MergedWithPrevious", "String")),
    "made-llama2": ("phi-3", sequence("normalizers", step("Prepend", prepend=MARK), replace(" ", MARK)), 0),
    "made-first": ("phi-3", 0, step("Metaspace", replacement=MARK, prepend_scheme="first", split=False)),
    "made-never": ("phi-3", step("NFKC"), step("Metaspace", replacement=MARK, prepend_scheme="never", split=True)),
    "made-albert": ("t5-small", [replace("``", '"'), replace("''", '"'), step("NFKD"), step("StripAccents"), step("Lowercase"), None,
                                 replace(" {2,}", " ", "Regex")], META),
    "made-deberta": ("t5-small", [step("Strip", strip_left=True, strip_right=True), None, replace(" {2,}", " ", "Regex")], META),
    "made-unigram": ("t5-small", sequence("normalizers", step("Nmt"), step("NFKC"), replace(" {2,}", " ", "Regex")), META),
    "made-nested": ("t5-small", sequence("normalizers", sequence("normalizers", step("NFD"), sequence("normalizers", step("NFC"))),
                                         replace("\\s+", " ", "Regex")),
                    sequence("pretokenizers", sequence("pretokenizers", step("Digits", individual_digits=True),
                                                       step("Punctuation", behavior="MergedWithPrevious")), META)),
    "made-digits": ("phi-3", 0, sequence("pretokenizers", step("Digits", individual_digits=False),
                                         step("Punctuation", behavior="Contiguous"), split("[0-9][0-9][0-9]", "Isolated"),
                                         split("\\s+", "MergedWithNext"), split("e", "Removed", "String"))),
    "made-invert": ("phi-3", 0, sequence("pretokenizers", split("\\p{N}{1,3}", "MergedWithNext", invert=True),
                                         step("CharDelimiterSplit", delimiter="a"), split("\\p{N}+", "Contiguous"))),
    "made-bert-steps": ("bert-base-uncased", sequence("normalizers", step("NFD"), step("Lowercase"), step("StripAccents")),
                        sequence("pretokenizers", step("WhitespaceSplit"), step("Punctuation", behavior="Isolated"))),
    "made-whitespace": ("bert-base-uncased", step("Lowercase"), step("Whitespace")),
    "made-scripts": ("t5-small", [None], sequence("pretokenizers", step("UnicodeScripts"), META)),
    "made-length": ("bert-base-uncased", step("Lowercase"), sequence("pretokenizers", step("WhitespaceSplit"), step("FixedLength", length=4))),
    "made-bert-meta": ("bert-base-uncased", 0, META),
    "made-bert-bytes": ("bert-base-uncased", 0, sequence("pretokenizers", split("(?<=\\p{Lu})(?=\\p{Ll})", "Isolated"), BYTES)),
    "made-t5-bytes": ("t5-small", 0, sequence("pretokenizers", step("ByteLevel", add_prefix_space=True, trim_offsets=True,
                                                                  use_regex=True), step("Digits", individual_digits=True))),
    "made-meta-bytes": ("t5-small", 0, sequence("pretokenizers", META, BYTES)),
    "made-wordlevel": ("bert-base-uncased", 0, sequence("pretokenizers", step("Whitespace"), step("Punctuation", behavior="MergedWithNext")),
                       lambda j: {"type": "WordLevel", "vocab": j["model"]["vocab"], "unk_token": "[UNK]"}),
    "made-replace": ("bert-base-uncased", sequence("normalizers", replace("(?<=\\p{L})\\p{M}+|\\p{C}", "", "Regex"), replace("\\b", "-", "Regex"),
                                                 replace("(?i:sh|the)+?", " x ", "Regex")), step("WhitespaceSplit")),
    "made-deepseek3": ("roberta-base", 0, sequence("pretokenizers", *[split(x, "Isolated") for x in (
        "\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")], BYTES)),
    "made-deepseek-coder": ("roberta-base", 0, sequence("pretokenizers", *[split(x, "Isolated") for x in (
        "[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+")], step("Digits", individual_digits=True), BYTES)),
    "made-tekken": ("roberta-base", 0, sequence("pretokenizers", split(
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}"
        "\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+", "Isolated"), BYTES)),
    "made-bloom": ("roberta-base", 0, sequence("pretokenizers", split(" ?[^(\\s|[.,!?…。，、।۔،])]+", "Isolated"), BYTES)),
    "made-falcon": ("roberta-base", 0, sequence("pretokenizers", step("Punctuation", behavior="Contiguous"), step(
        "ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True), step("Digits", individual_digits=False), split("[0-9][0-9][0-9]", "Isolated"))),
    "made-command-r": ("roberta-base", step("NFC"), sequence("pretokenizers", step("Digits", individual_digits=True), step(
        "ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True))),
    "made-prefix": ("roberta-base", 0, sequence("pretokenizers", split("(?=[A-Z])", "Isolated"), step("Digits", individual_digits=False),
                                                step("ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True))),
    "made-removed": ("roberta-base", 0, sequence("pretokenizers", split("\\s+|(?<!\\d)\\.", "Removed"), split("[aeiou]+?", "MergedWithNext"),
                                                 split("\\w\\b", "MergedWithPrevious", invert=True), BYTES)),
    "made-bytes": ("roberta-base", step("ByteLevel"), 0),
    "made-bytes-split": ("roberta-base", sequence("normalizers", step("NFD"), step("ByteLevel")), split("Ġ?[^Ġ]+", "Contiguous")),
    "made-bert-nfkc": ("bert-base-uncased", sequence("normalizers", step("NFKC"), step(
        "BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True)), step("BertPreTokenizer")),
}


def made(name, build=BUILD):
    """the path of the file made"""
    source, normalizer, pre = MADE[name][:3]
    with open(os.path.join(VOCAB, source, "tokenizer.json"), encoding="utf-8") as f:
        j = json.load(f)
    if isinstance(normalizer, list):                # None stands for the file's own
        normalizer = sequence("normalizers", *[s or j["normalizer"] for s in normalizer])
    j["normalizer"], j["pre_tokenizer"] = normalizer or None, pre or None
    if MADE[name][3:]:
        j["model"], j["decoder"] = MADE[name][3](j), None
    if source == "phi-3":
        j["added_tokens"] = j["added_tokens"][:3]
    os.makedirs(build, exist_ok=True)
    path = os.path.join(build, name + ".json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(j, f, ensure_ascii=False)
    return path


LEARNT = {
    "learnt-unknown": {"character_coverage": 0.98},
    "learnt-fallback": {"byte_fallback": True, "character_coverage": 0.98, "remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
    "learnt-user": {"user_defined_symbols": ["aa", MARK + "th", "e" + MARK, "\u4e2d", "on", MARK * 2], "character_coverage": 0.98},
    "learnt-across": {"split_by_whitespace": False, "character_coverage": 0.98, "remove_extra_whitespaces": False},
    "learnt-suffix": {"treat_whitespace_as_suffix": True, "character_coverage": 0.98},
    "learnt-scripts": {"split_by_unicode_script": False, "split_by_number": False, "add_dummy_prefix": False, "byte_fallback": True},
}


def learnt(name, build=BUILD):
    import sentencepiece
    os.makedirs(build, exist_ok=True)
    path = os.path.join(build, name)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(t for t in texts_of(1, 0) if "\0" < min(t, default="\0") and max(t) < "\u0500"), model_prefix=path, model_type="bpe", vocab_size=2000,
        hard_vocab_limit=False, num_threads=1, minloglevel=2, **LEARNT[name])
    return path + ".model"


def families(lib):
    import sentencepiece
    from tokenizers import Tokenizer
    for name, sub, lower in (("bert-base-uncased", "bert-base-uncased", True), ("bert-base-cased", "bert-base-cased", False),
                             ("bert-base-chinese", "bert-base-chinese", False), ("bert-base-chinese-lower", "bert-base-chinese", True)):
        path = os.path.join(VOCAB, sub, "vocab.txt")
        yield name, (lambda p=path, l=lower: by_huggingface(Ours(lib, p, PARSE, int(l)), bert(p, l))) \
            if os.path.exists(path) else "no %s" % path
    for name, sub in (("bert-json", "bert-base-uncased"), ("t5-small", "t5-small"), ("phi-3", "phi-3")):
        path = os.path.join(VOCAB, sub, "tokenizer.json")
        yield name, (lambda p=path: by_huggingface(Ours(lib, p, PARSE), Tokenizer.from_file(p))) \
            if os.path.exists(path) else "no %s" % path
    for name in MADE:
        if not os.path.exists(os.path.join(VOCAB, MADE[name][0], "tokenizer.json")):
            yield name, "no %s" % MADE[name][0]
            continue
        yield name, lambda p=made(name): by_huggingface(Ours(lib, p, PARSE), Tokenizer.from_file(p))
    for name, sub in (("llama2", "llama2/tokenizer.model"), ("mistral-v1", "mistral/tokenizer.model.v1"),
                      ("mistral-v3", "mistral/mistral_instruct_tokenizer_240323.model.v3"), ("chatglm3", "chatglm3/tokenizer.model"),
                      ("baichuan2", "baichuan2/tokenizer.model"), ("internlm2", "internlm2/tokenizer.model"),
                      ("xlnet", "xlnet/spiece.model"), ("spm-test-unigram", "sentencepiece-test/test_model.model"),
                      ("spm-test-ja", "sentencepiece-test/test_ja_model.model"), ("nmt-joint", "sentencepiece-test/nmt.vocab.joint.spm")):
        path = os.path.join(VOCAB, sub)
        old = sentencepiece.__version__.startswith("0.1.") or name not in ("xlnet", "spm-test-unigram", "spm-test-ja", "nmt-joint",
                                                                           "internlm2")
        yield name, "no %s" % path if not os.path.exists(path) else "needs SentencePiece 0.1" if not old else \
            lambda p=path: by_sentencepiece(Ours(lib, p, TEXT), p)
    for name in LEARNT:
        yield name, (lambda p=learnt(name): by_sentencepiece(Ours(lib, p, TEXT), p)) \
            if sentencepiece.__version__.startswith("0.1.") else "needs SentencePiece 0.1"


if __name__ == "__main__":
    sys.exit(main(__doc__, families, "tokenizers", "sentencepiece", "unicodedata2"))
