"""Write the fixtures beside this file by speculators' own code: `python generate.py TOKENIZER` in its environment.

The dataset is made and saved by speculators, the states by the connectors that vLLM runs for it: its own, and the FP8
one of `hs_connectors`. Tokens and states are random numbers. Made with speculators 0.9.0 and vLLM 0.32.
"""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hs_connectors.fp8_hidden_states_connector import FP8HiddenStatesConnector
from speculators.data_generation.preprocessing import load_and_preprocess_dataset
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import ExampleHiddenStatesConnector

HERE = Path(__file__).parent
CONNECTORS = {"bf16": ExampleHiddenStatesConnector, "fp8": FP8HiddenStatesConnector}
LENGTHS = (9, 24, 17)


class Done:
    """In place of a CUDA event."""

    def synchronize(self) -> None: ...


def main(tokenizer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    with TemporaryDirectory() as work:
        rows = Path(work, "rows.jsonl")
        with rows.open("w") as file:
            for length in LENGTHS:
                ids = torch.randint(0, 320, (length,), generator=generator).tolist()
                file.write(json.dumps({"input_ids": ids, "loss_mask": [0] * 3 + [1] * (length - 3)}) + "\n")
        dataset, _ = load_and_preprocess_dataset(tokenizer, [str(rows)], seq_length=64, build_dataset_num_proc=1)
        states = [torch.randn(len(row["input_ids"]), 4, 32, generator=generator).bfloat16() * 3 for row in dataset]
        for name, connector in CONNECTORS.items():
            folder = HERE / name
            shutil.rmtree(folder, ignore_errors=True)
            dataset.save_to_disk(str(folder))
            (folder / "hidden_states").mkdir()
            for number, row in enumerate(dataset):
                tensors = {"hidden_states": states[number].clone(), "token_ids": row["input_ids"].clone()}
                path = folder / "hidden_states" / f"hs_{number}.safetensors"
                connector._write_tensors(tensors, Done(), str(path), None)


if __name__ == "__main__":
    main(sys.argv[1])
