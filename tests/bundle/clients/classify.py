"""What MediaPipe's text tasks say: texts as JSON on standard input, its answers as JSON on standard output."""

import json
import sys

from mediapipe.tasks.python import text

kind, model, texts = json.load(sys.stdin)
with getattr(text, kind).create_from_model_path(model) as task:
    if kind == "TextClassifier":
        every = [task.classify(one).classifications[0].categories for one in texts]
        answers = [[(category.category_name, category.score) for category in one] for one in every]
    else:
        answers = [task.embed(one).embeddings[0].embedding.tolist() for one in texts]
sys.stdout.write(json.dumps(answers))
