"""
What a trained network runs in: torch, or an inference engine where one is installed.

`engine` says what one is, the files `in_...` make one each, `cache` keeps what they built,
`choice` builds one by name or measures which is fastest, `engined` puts it where a predictor has
its network, `settings` is how its user asks for it and `calibration` what scales int8.
"""
