"""What `--model_args` may say: looked at without lm-evaluation-harness."""

import pytest

from reasonalloc.integrations.lm_eval.arguments import ArgumentError, check


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("profile", {"budget": 64}),
        ("calibration", {"method": "triattention", "budget": 64}),
        ("options", {"method": "rlkv"}),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, settings):
    path = str(tmp_path / ("a" * 300))  # longer than names of files may be
    given = {"gates": path} if name == "options" else path
    with pytest.raises(ArgumentError, match=rf"^{name} .*aaa.* cannot be read: File name too long"):
        check(dtype="float32", batch_size=1, loglikelihood="cache", settings={**settings, name: given})
