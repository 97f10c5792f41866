"""The eSpeak NG engine."""
