"""What a finished or running run says of itself, for a person: read its directory, put the numbers
together, draw them, write one page. numpy, pyarrow, pyyaml and pydantic; jinja2 and matplotlib
(extra `report`) for the page alone. No torch."""
