"""The foundation: token maps, schedules, the engine. Imports torch alone."""
