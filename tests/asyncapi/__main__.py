"""Writes the AsyncAPI document for check.mjs."""

import json

from runwire.http.asyncapi_pages import document
from runwire.settings import Settings

print(json.dumps(document(Settings())))
