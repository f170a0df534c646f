// Package lint holds the structure of this repository as tests: who may import
// whom, what every package says of itself, what no package has. Each rule tells
// its reason when it is broken.
//
// It has no code outside its tests and nothing imports it. The rules stand in
// rules_test.go; to change the structure, change them there and say why.
package lint
