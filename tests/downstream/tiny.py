"""What the other scripts of this folder train: a small GPT-2 on packed token blocks."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, set_seed


class Blocks(torch.utils.data.Dataset):
    def __init__(self, count=64, size=16, seed=1):
        steps = torch.randint(1, 4, (count, size), generator=torch.Generator().manual_seed(seed))
        self.ids = steps.cumsum(dim=1) % 64

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def make_model(seed=42):
    set_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2))
