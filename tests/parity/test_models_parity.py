#!/usr/bin/env python3
"""test_models_parity.py - every model, decoder and post-processor of tokenizer.json, on seeded random strings

    build/venv/bin/python tests/parity/test_models_parity.py [--n 20000] [--full] [--only NAME,NAME] [--seed 1]

The files are made here: learnt by Hugging Face tokenizers from the random strings of many_texts.py (CLIP's way with
ByteLevel and "</w>" among them), then given the parts to be checked, and written to build/made-NAME.json. No vocabulary is
needed. Ids, with what stands around a sentence, decoded text of these and of random ids, and of a text shown id by id.
"""
import json
import os
import sys

from many_texts import ADD, BUILD, PARSE, Family, Ours, main, texts_of
from test_sentencepiece_parity import MARK, META, replace, sequence, split, step

TRAINED = {}


def trained(kind, size=3000, **more):
    """A model of tokenizer.json, learnt from random strings cut as kind says."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    key = (kind, size, tuple(sorted(more.items())))
    if key in TRAINED:
        return json.loads(TRAINED[key])
    cut = {"words": pre_tokenizers.BertPreTokenizer(), "spaces": pre_tokenizers.WhitespaceSplit(), "none": pre_tokenizers.Digits(),
           "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False), "level": pre_tokenizers.WhitespaceSplit()}[kind]
    if kind == "level":
        tok, trainer = Tokenizer(models.WordLevel(unk_token="<unk>")), trainers.WordLevelTrainer(vocab_size=size, special_tokens=["<unk>", "<s>"])
    else:
        tok = Tokenizer(models.BPE(unk_token="<unk>", **{k: v for k, v in more.items() if k in AFFIX}))
        trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, special_tokens=["<unk>", "<s>"], limit_alphabet=more.get("alphabet", 400),
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" and "alphabet" not in more else [],
                                      **{k: v for k, v in more.items() if k in AFFIX})
    if kind == "bytes":
        tok.normalizer = normalizers.Lowercase()
    tok.pre_tokenizer = cut
    tok.train_from_iterator((t for t in texts_of(1, 0) if "<unk>" not in t and "<s>" not in t), trainer)
    TRAINED[key] = json.dumps(json.loads(tok.to_str())["model"])
    return json.loads(TRAINED[key])


AFFIX = ("continuing_subword_prefix", "end_of_word_suffix")
SUFFIX, PREFIX = {AFFIX[1]: "</w>"}, {AFFIX[0]: "##"}
BYTES = step("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
PLAIN = step("ByteLevel", add_prefix_space=True, trim_offsets=False, use_regex=False)
CLIP = sequence("normalizers", step("NFC"), replace("\\s+", " ", "Regex"), step("Lowercase"))
WORDS, SPACES = step("BertPreTokenizer"), step("WhitespaceSplit")
BPE_DECODER, WORDPIECE = step("BPEDecoder", suffix="</w>"), step("WordPiece", prefix="##", cleanup=True)
FALLBACK, FUSE = step("ByteFallback"), step("Fuse")


def strip(content, start, stop):
    return step("Strip", content=content, start=start, stop=stop)


def ctc(cleanup):
    return step("CTC", pad_token="<unk>", word_delimiter_token="|", cleanup=cleanup)


def with_bytes(model, all_of_them=True):
    """<0x00> .. at the end of the vocabulary; or no more than those of the letters é and 中, and 12 more"""
    some = range(256) if all_of_them else sorted(set("é中".encode()) | set(range(0x80, 0x8C)))
    for b in some:
        model["vocab"]["<0x%02X>" % b] = len(model["vocab"])
    return dict(model, byte_fallback=True)


def backwards(model):
    """Merges in an order no training has: those of long tokens first."""
    return dict(model, merges=sorted(model["merges"], key=lambda m: (-len("".join(m)), m)))


def twice(model):
    """A merge that is given again counts where it comes last."""
    return dict(model, merges=model["merges"] + model["merges"][::7])


def template(*parts):
    special = {"<unk>": 0, "<s>": 1}
    return step("TemplateProcessing", pair=[{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                single=[{"Sequence": {"id": "A", "type_id": 0}} if p == "A" else {"SpecialToken": {"id": p, "type_id": 0}} for p in parts],
                special_tokens={k: {"id": k, "ids": [v], "tokens": [k]} for k, v in special.items()})


def pair(kind, **more):
    return step(kind, sep=["<unk>", 0], cls=["<s>", 1], **more)


ROBERTA = pair("RobertaProcessing", trim_offsets=True, add_prefix_space=False)
MADE = {     # name: model, normalizer, pre_tokenizer, decoder, post_processor
    "made-word-level": (lambda: trained("level"), step("Lowercase"), SPACES, None, template("<s>", "A")),
    "made-word-level-meta": (lambda: trained("level"), None, sequence("pretokenizers", SPACES, META), step("Metaspace", replacement=MARK,
                             prepend_scheme="always", split=True), pair("BertProcessing")),
    "made-word-level-ctc": (lambda: trained("level"), None, sequence("pretokenizers", SPACES, step("Punctuation", behavior="Isolated")), ctc(True), None),
    "made-clip": (lambda: trained("bytes", **SUFFIX), CLIP, BYTES, BYTES, ROBERTA),
    "made-clip-decoder": (lambda: trained("bytes", **SUFFIX), CLIP, sequence("pretokenizers", step("Digits", individual_digits=True), BYTES),
                          sequence("decoders", BPE_DECODER, BYTES), sequence("processors", ROBERTA, BYTES)),
    "made-clip-unknown": (lambda: dict(trained("bytes", alphabet=40, **SUFFIX), fuse_unk=True), None, PLAIN, None, None),
    "made-suffix": (lambda: trained("words", **SUFFIX), step("Lowercase"), WORDS, BPE_DECODER, template("<s>", "A", "<unk>", "<s>")),
    "made-suffix-fused": (lambda: dict(trained("spaces", alphabet=60, **SUFFIX), fuse_unk=True), None, SPACES,
                          sequence("decoders", BPE_DECODER, FUSE, strip(" ", 2, 0)), sequence("processors", ROBERTA, template("<unk>", "A", "<s>"))),
    "made-prefix": (lambda: trained("words", **PREFIX), None, WORDS, WORDPIECE, pair("BertProcessing")),
    "made-affixes": (lambda: dict(trained("words", alphabet=80, **PREFIX, **SUFFIX), unk_token=None), step("NFKC"), WORDS,
                     sequence("decoders", step("WordPiece", prefix="##", cleanup=False), replace("</w>", "")), None),
    "made-affixes-back": (lambda: backwards(trained("words", **PREFIX, **SUFFIX)), None, WORDS, sequence("decoders", WORDPIECE, BPE_DECODER), None),
    "made-whole-word": (lambda: dict(twice(trained("words", **SUFFIX)), ignore_merges=True), None, WORDS, ctc(False), None),
    "made-characters": (lambda: trained("none"), None, None, FUSE, None),
    "made-expressions": (lambda: trained("none"), replace("(?<=e)\\s+|(.)(?!.)", "", "Regex"), split("\\w{2,}+", "Isolated", "Regex"), sequence(
        "decoders", replace("[aeiou]+|b?\\b", "<>", "Regex"), FUSE, replace("(?<=<>)\\s", "_", "Regex")), None),
    "made-back": (lambda: backwards(trained("none", size=6000)), None, step("Digits", individual_digits=False), None, None),
    "made-twice": (lambda: twice(trained("none")), None, WORDS, sequence("decoders"), None),
    "made-whole": (lambda: dict(backwards(trained("none")), ignore_merges=True), None, SPACES, sequence("decoders", replace("e", "[é]")), None),
    "made-no-unknown": (lambda: dict(trained("none", alphabet=50), unk_token=None), None, SPACES, sequence("decoders", strip("a", 1, 0), FUSE), None),
    "made-dropout": (lambda: dict(trained("none", alphabet=50), dropout=0.0, fuse_unk=True), None, None, sequence("decoders", FUSE, replace("th", " ")), None),
    "made-fallback": (lambda: with_bytes(trained("none", alphabet=50)), replace(" ", MARK), None,
                      sequence("decoders", replace(MARK, " "), FALLBACK, FUSE, strip(" ", 1, 0)), None),
    "made-fallback-tokens": (lambda: with_bytes(trained("none", alphabet=50)), None, META, sequence("decoders", FALLBACK, step(
        "Metaspace", replacement=MARK, prepend_scheme="never", split=True), strip(" ", 3, 0)), None),
    "made-fallback-some": (lambda: dict(with_bytes(trained("none", alphabet=50), False), unk_token=None), None, SPACES, FALLBACK, None),
    "made-fallback-none": (lambda: dict(trained("none", alphabet=50), byte_fallback=True, fuse_unk=True), None, SPACES, sequence(
        "decoders", step("WordPiece", prefix="e", cleanup=True), ctc(True)), None),
    "made-bytes": (lambda: trained("bytes"), None, BYTES, sequence("decoders", BYTES, strip(" ", 1, 0)), template("A", "<s>")),
    "made-bytes-twice": (lambda: twice(trained("bytes")), None, BYTES, BYTES, None),
    "made-bytes-unknown": (lambda: trained("bytes", alphabet=40), None, BYTES, BYTES, None),
    "made-bytes-fused": (lambda: dict(trained("bytes", alphabet=40), fuse_unk=True), step("NFC"), sequence("pretokenizers", SPACES, PLAIN),
                         sequence("decoders", replace("\u0120", " "), FUSE), None),
    "made-bytes-steps": (lambda: trained("bytes"), sequence("normalizers", step("NFD"), step("Lowercase"), step("StripAccents")), BYTES, BYTES,
                         sequence("processors", BYTES, template("<s>", "A"))),
}


def made(name, build=BUILD):
    model, normalizer, pre, decoder, post = MADE[name]
    os.makedirs(build, exist_ok=True)
    path = os.path.join(build, name + ".json")
    model = model()
    added = [{"id": model["vocab"][c], "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for c in ("<unk>", "<s>")]
    with open("%s.%d" % (path, os.getpid()), "w", encoding="utf-8") as f:
        json.dump({"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre,
                   "post_processor": post, "decoder": decoder, "model": model}, f, ensure_ascii=False)
    os.rename("%s.%d" % (path, os.getpid()), path)
    return path


def families(lib):
    from tokenizers import Tokenizer

    def make(path, saved=False):
        ours, folder = Ours(lib, path, PARSE | ADD), path[:-5] + "-saved"
        if saved and lib.ft_tokenizer_save(ours.tok, folder.encode(), None):
            raise SystemExit("cannot save " + path)
        tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json") if saved else path)
        vocab = tok.get_vocab()
        # "t" "h" -> " ", broken bytes, and a token that a space behind it makes no bytes: shown too early
        streams = not any(x in path for x in ("made-dropout", "made-fallback", "made-clip-decoder"))
        return Family(ours, lambda texts: [e.ids for e in tok.encode_batch(texts, add_special_tokens=True)],
                      lambda lists: tok.decode_batch(lists, skip_special_tokens=False), tok.get_vocab_size(),
                      [vocab["<0x%02X>" % b] for b in range(256) if "<0x%02X>" % b in vocab], streams)
    for name in MADE:
        yield name, lambda p=made(name): make(p)
    for name in ("made-bytes", "made-bytes-twice", "made-bytes-unknown", "made-bytes-steps"):       # as ftune saves them
        yield name + "-saved", lambda p=made(name): make(p, True)


if __name__ == "__main__":
    sys.exit(main(__doc__, families, "tokenizers", "unicodedata2"))
