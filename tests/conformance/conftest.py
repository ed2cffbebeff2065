import pytest
from backends import BACKENDS, DTYPES, as_parameters

from reasonalloc import _core


@pytest.fixture(params=as_parameters(BACKENDS))
def backend(request):
    with request.param.chosen():
        yield request.param


@pytest.fixture(params=_core.formats())
def page_format(request):
    """Name of the format that pages have."""
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    """Of what comes in and of the output; it need not be the format's."""
    return DTYPES[request.param]


@pytest.fixture(params=_core.scorers())
def scorer(request, backend):
    if not backend.supports(request.param):
        pytest.skip(f"{backend.name} has no scorer {request.param}")
    return request.param
