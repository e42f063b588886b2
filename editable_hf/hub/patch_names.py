"""Names of the files that a patch consists of."""

PATCH_NAME = "patch.json"
PAYLOAD_NAME = "patch.safetensors"
CARD_NAME = "README.md"
