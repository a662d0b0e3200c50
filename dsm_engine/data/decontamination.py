"""Stub until the other half is merged."""

from dsm_engine.recipes import Section


class DecontaminationRecipe(Section):
    """The benchmarks whose text is looked for."""
