"""Calendars: spans of time that come again, by cron, RFC 5545 or a country's holidays. Pure functions of settings.

May use: the libraries that read these texts, imported where one is asked for.
"""
