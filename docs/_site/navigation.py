"""The order of the pages. The pages themselves hold no directives, so that they read well where the code is hosted."""

PAGES = {
    "Start": ["quickstart", "recipe", "generated/gallery/index", "migrating", "multi_gpu"],
    "Before training": ["initialisation", "normalisation", "optimizers", "lr_finder", "preflight"],
    "While training": [
        "early_stopping",
        "reduce_lr_on_plateau",
        "exact_resume",
        "norm_monitor",
        "activation_monitor",
        "diagnosis",
        "weight_penalty",
    ],
    "How sure is it?": ["mc_dropout", "uncertainty_measures", "uci_dropout"],
    "Data": ["datamodules", "splits", "augmentation", "text_augmentation"],
    "Which settings?": ["cross_validation", "hyperparameter_search", "coarse_to_fine", "vectorised_trials"],
    "Tools": ["command_line", "wandb"],
    "Reference": [
        "generated/api/index",
        "benchmarks",
        "peers_stopping",
        "faults",
        "design",
        "bug_report",
        "README <generated/files/README>",
        "generated/files/CONTRIBUTING",
        "generated/files/SECURITY",
        "generated/files/CHANGELOG",
    ],
}


def toctrees(docs):
    """Return the navigation as directives; a page that is named nowhere above comes under "More"."""
    named = {page for pages in PAGES.values() for page in pages} | {"index"}
    rest = sorted(page.stem for page in docs.glob("*.md") if page.stem not in named)
    groups = {**PAGES, **({"More": rest} if rest else {})}
    return "".join(
        map(_toctree, groups, ([page for page in pages if _exists(docs, page)] for pages in groups.values()))
    )


def _exists(docs, entry):
    page = entry.split("<")[-1].rstrip(">")
    return any((docs / page).with_suffix(suffix).exists() for suffix in (".md", ".rst"))


def _toctree(caption, pages):
    return "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(pages) + "\n```\n"
