"""The room for app integration builds: a verified artefact with the library that an app drops in."""
