"""Looking into traced programs, by what every version of JAX that is supported has."""


def inner_jaxprs(equation):
    """The jaxprs that an equation carries in its parameters: of loops, branches, calls."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner
