"""Whole files of weights: imported with their architecture, and opened again as a model."""

import json
from dataclasses import dataclass
from pathlib import Path

from vitrail import __version__
from vitrail.checkpoint import file_sha256
from vitrail.config import MIN_COVERAGE, ModelConfig, Recipe
from vitrail.models.architecture import infer_model, is_segmentor, matching_recipe
from vitrail.models.segmentor import Segmentor
from vitrail.models.weight_files import WeightFileError, read_tensors, write_safetensors
from vitrail.models.weights import Coverage, fit, load_weights
from vitrail.recipes import get_recipe
from vitrail.strict import validated

_KEY = "vitrail"
"""Of the JSON in a safetensors header."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import found and wrote."""

    coverage: Coverage
    model: ModelConfig
    recipe: Recipe | None
    """How a segmentor of this architecture is tested; None for a backbone alone, or where no recipe builds it."""
    segmentor: bool
    """Whether the file has heads; else it is a backbone to start training from."""


def import_weights(
    source: Path, out: Path, *, recipe: str | None = None, min_coverage: float = MIN_COVERAGE
) -> Imported:
    """Write the tensors of any known file as safetensors by our names, with their architecture in the header.

    The architecture is that of the recipe, with the classes of the file, or follows from the tensors. They are tried on
    it, and written as they are: nothing is resized or dropped before a model loads them.

    Raises:
        CoverageError: the file covers too little of the backbone.
        WeightFileError: unreadable, or heads that do not fit the recipe.
    """
    tensors, known = load_weights(source)
    config = infer_model(tensors)
    model_recipe = matching_recipe(config) if is_segmentor(tensors) else None
    if recipe is not None:
        model_recipe = get_recipe(recipe).with_classes(config.num_classes)
        config = model_recipe.model
    digest = file_sha256(source / "model.safetensors" if source.is_dir() else source)
    coverage = fit(
        Segmentor(config), tensors, source=str(source), format=known, sha256=digest, min_coverage=min_coverage
    )
    lacking = [name for name in coverage.missing if not name.endswith("num_batches_tracked")]
    if is_segmentor(tensors) and (lacking or coverage.unexpected):
        raise WeightFileError(
            str(source),
            f"has another architecture than {recipe or 'any recipe'}: "
            f"missing {', '.join(lacking) or 'nothing'}; unexpected {', '.join(coverage.unexpected) or 'nothing'}",
        )
    description = {
        "version": __version__,
        "recipe": model_recipe and model_recipe.model_dump(mode="json"),
        "model": config.model_dump(mode="json"),
        "segmentor": is_segmentor(tensors),
        "coverage": coverage.summary() | {"source": source.name},
    }
    write_safetensors(tensors, out, metadata={_KEY: json.dumps(description)})
    return Imported(coverage=coverage, model=config, recipe=model_recipe, segmentor=is_segmentor(tensors))


def open_segmentor(path: Path) -> tuple[Segmentor, Recipe]:
    """The model of a file that `import_weights` wrote, in eval mode, and how it is tested.

    Raises:
        WeightFileError: written by something else, a backbone alone, or of an architecture without a recipe.
    """
    file = read_tensors(path)
    if _KEY not in file.metadata:
        raise WeightFileError(str(path), "names no architecture; run `vitrail weights import` on it")
    description = json.loads(file.metadata[_KEY])
    if not description["segmentor"]:
        raise WeightFileError(str(path), "holds a backbone alone; train a model from it with --pretrained")
    if description["recipe"] is None:
        raise WeightFileError(str(path), "no recipe has its architecture; import it again with --recipe")
    recipe = validated(Recipe, description["recipe"])
    model = Segmentor(validated(ModelConfig, description["model"]))
    fit(model, file.tensors, source=str(path), format="vitrail", sha256=None)
    return model.eval(), recipe
