"""The tests of castore, laid out by what they prove.

unit: one module each, in folders that mirror castore's; cli: the command line; integration: real servers and
applications; property: laws over inputs that Hypothesis makes; conformance: one suite per contract; crash: power
loss, and kill at every step; damage: damaged stores and hostile users; golden: stores of earlier builds; support:
what tests share, with its own tests.
"""
