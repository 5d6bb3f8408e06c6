"""The HTTP face: OpenAI's chat API, its errors, authentication and streams."""
