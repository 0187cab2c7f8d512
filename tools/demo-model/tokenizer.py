"""The tokenizer of the demo model: Unigram, one piece for each word of the world, single characters for the rest.

A sentence is cut into words at spaces and ends with `</s>`. Words outside the world fall apart into characters, so any
prompt has ids, though only the world's words mean something to the model.

    tokenizer.py OUT.json        builds it; the result depends on nothing but world.py
"""

import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from world import caption, sample_attributes

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
CHARACTERS = "▁abcdefghijklmnopqrstuvwxyz0123456789,.!?'-:;()\"&/+"
N_CAPTIONS = 6000


def build():
    """The tokenizer, from the word counts of 6,000 captions."""
    rng = np.random.default_rng(0)
    words = Counter(word for _ in range(N_CAPTIONS) for word in caption(sample_attributes(rng), rng).split())
    n_words = sum(words.values())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [("▁" + word, math.log(count / n_words)) for word, count in words.most_common()]
    known = {piece for piece, _ in pieces}
    pieces += [(character, -12.0) for character in CHARACTERS if character not in known]

    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=UNK_ID))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS_ID)])
    return tokenizer


def load():
    """The tokenizer the shipped weights were trained with."""
    return Tokenizer.from_file(str(Path(__file__).parents[2] / "models/demo/tokenizer/tokenizer.json"))


def encode(tokenizer, texts):
    """Token ids and mask of the texts, both [n, longest], padded with 0."""
    encodings = tokenizer.encode_batch(texts)
    length = max(len(encoding.ids) for encoding in encodings)
    ids = torch.tensor([encoding.ids + [PAD_ID] * (length - len(encoding.ids)) for encoding in encodings])
    mask = torch.tensor([[1] * len(encoding.ids) + [0] * (length - len(encoding.ids)) for encoding in encodings])
    return ids, mask


if __name__ == "__main__":
    build().save(sys.argv[1])
