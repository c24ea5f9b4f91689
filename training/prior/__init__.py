"""The networks that ship: trained on synthetic series. Stands on `learn` and `network`."""
