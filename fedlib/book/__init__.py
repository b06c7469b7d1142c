"""What only the book needs: claims, figures, explorers, what every chapter does, and weights by construction.

Nothing is imported here: ``fl.plots`` and its like load their module on first use.
"""
