"""What operators read: metrics, log lines, words of alerts. Changes nothing."""
