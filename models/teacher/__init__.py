"""The teacher: a text model that learns from the shop's own log how well an item fits a query.

``data`` makes examples of a log or of judgements, ``train`` makes a teacher of them, ``score`` computes its scores, and
``network`` holds the model that the two share. The files beside these folders say what a teacher reads and answers.

Torch is imported only by the modules that compute with it: templates, examples and the static reader need none.
"""
