"""What shows only once teacher and student are both open: refused before the first step, in one line."""

from __future__ import annotations

from asrkd.models.base import Recogniser
from asrkd.teachers.fit import FittedTeacher
from asrkd.teachers.vocabulary import Match
from asrkd.training.recipe import Recipe, RecipeError


def check_vocabulary(recipe: Recipe, found: Match) -> None:
    """Another vocabulary goes through text, and so needs hypotheses.

    Raises:
        RecipeError: If there are none.
    """
    assert recipe.targets is not None
    if found.student_ids is None and not recipe.targets.nbest:
        raise RecipeError(
            "targets.nbest: expected at least 1, since the teacher's vocabulary is another than the student's and everything "
            f"goes through text; found 0 ({found.reason})"
        )


def check_lattice(recipe: Recipe, teacher: FittedTeacher, student: Recogniser) -> None:
    """Two lattices meet node by node: same tokens, same frames.

    Raises:
        RecipeError: If they do not, and a loss needs the teacher's.
    """
    if "targets.lattice" not in recipe.needs:
        return
    if teacher.found.relation != "same":
        raise RecipeError(
            "tokenizer.package: expected the teacher's, since a transducer's lattice stands on its tokens; found another "
            f"vocabulary ({teacher.found.reason})"
        )
    ours, theirs = ((round(1000 * model.frame_shift_s, 3), model.sample_rate_hz) for model in (student, teacher))
    if ours != theirs:
        raise RecipeError(
            f"model.subsampling_factor: expected frames of {theirs[0]:g} ms at {theirs[1]} Hz as the teacher's, since "
            f"lattices meet frame by frame; found {ours[0]:g} ms at {ours[1]} Hz"
        )
