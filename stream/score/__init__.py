"""The score stage: records take the scores of a teacher along, and never wait for one."""
