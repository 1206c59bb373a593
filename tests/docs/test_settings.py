"""The page of settings is the one that the classes give."""

from tests.docs.write_settings import TARGET, page


def test_the_page_of_settings_is_up_to_date() -> None:
    assert TARGET.read_text("utf-8") == page(), "run: make docs"
