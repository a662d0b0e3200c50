"""The quality steps as the pipeline calls them."""

from collections.abc import Callable

from dsm_engine.data.preparation.prepare import Verifier
from dsm_engine.data.recipe import VerificationRecipe


def open_verification(
    recipe: VerificationRecipe | None, *, unsafe_exec: bool
) -> Callable[[], Verifier] | None:
    """What makes a verifier in each process; None where programs are not run.

    Raises DsmError where they cannot be run here.
    """
    if recipe is None:
        return None
    from dsm_engine.data.program_cache import ProgramCache, default_cache_path
    from dsm_engine.data.program_verification import ProgramVerifier
    from dsm_engine.sandbox import Sandbox

    def sandbox() -> Sandbox:
        return Sandbox(
            timeout_s=recipe.timeout_s,
            memory_mib=recipe.memory_mib,
            workers=1,
            unsafe=unsafe_exec,
        )

    cache_path = recipe.cache or default_cache_path()
    sandbox().close()
    ProgramCache(cache_path).close()
    return lambda: ProgramVerifier(sandbox(), ProgramCache(cache_path))
