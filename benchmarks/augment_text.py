"""How long does it take to augment a text? Microseconds of CPU time per text of 20 words, by operation.

python benchmarks/augment_text.py [--wordnet FOLDER]
"""

import argparse
import json
import statistics
import time

from lightning_tricks.data.augment import (
    RandomDeletion,
    RandomInsertion,
    RandomSwap,
    SynonymReplacement,
    Synonyms,
    TextAugment,
)

TEXT = "The film has a good story and fine actors, but the end (a long speech) is weak: a pity, not a disaster."
TABLE = {
    "film": ["movie", "picture"],
    "good": ["fine", "great"],
    "story": ["plot"],
    "weak": ["poor"],
    "long": ["lengthy"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", help="folder of WordNet's database files")
    args = parser.parse_args()
    runs = {
        "synonyms from a dictionary": [SynonymReplacement(TABLE)],
        "insertion": [RandomInsertion(TABLE)],
        "swap": [RandomSwap()],
        "deletion": [RandomDeletion()],
        "all four": [SynonymReplacement(TABLE), RandomInsertion(TABLE), RandomSwap(), RandomDeletion()],
    }
    if args.wordnet:
        start = time.process_time()
        wordnet = Synonyms.from_wordnet(args.wordnet)
        _ = wordnet["film"]
        print(f"reading WordNet's index, once: {time.process_time() - start:.2f} s")
        runs["synonyms from WordNet"] = [SynonymReplacement(wordnet)]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(7):
        for name, ops in runs.items():
            augment = TextAugment(ops, p=1.0)
            start = time.process_time()
            for index in range(500):
                augment(TEXT, index=index, epoch=0)
            times[name].append((time.process_time() - start) / 500 * 1e6)
    report = {name: round(statistics.median(values), 1) for name, values in times.items()}
    for name, value in report.items():
        print(f"{name:32}{value:8.1f} µs per text")
    print(json.dumps({"benchmark": "augment_text", "microseconds": report}))


if __name__ == "__main__":
    main()
