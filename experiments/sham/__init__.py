"""Which explainers does each attack fool, what does it cost in decisions, and with how many classes?"""
