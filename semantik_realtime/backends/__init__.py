"""The bundled backends. Each comes by the same entry-point group as a stranger's."""
