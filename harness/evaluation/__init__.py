"""Answers judged: rubrics and scores, panels of judges, and payloads cut to what matters."""
