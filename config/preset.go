package config

import (
	"embed"
	"path"
	"slices"
	"strings"
)

//go:embed presets/*.yaml
var presetFiles embed.FS

// Presets returns the names of the ready mappings.
func Presets() []string {
	entries, err := presetFiles.ReadDir("presets")
	if err != nil {
		panic("config: embedded presets: " + err.Error()) // cannot happen: the folder is embedded
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	slices.Sort(names)
	return names
}

// PresetFile returns the YAML text of a preset, for people who want to start from
// it. ok is false when there is none of that name.
func PresetFile(name string) (text []byte, ok bool) {
	text, err := presetFiles.ReadFile(path.Join("presets", name+".yaml"))
	return text, err == nil
}

// preset is the shape of a preset's file: a part of billhook.yaml.
type preset struct {
	Entities Entities         `yaml:"entities" jsonschema:"required"`
	Events   map[string]Event `yaml:"events,omitempty"`
}

func (*preset) setDefaults() {}

// loadPreset reads an embedded preset with the same rules as the file itself.
func loadPreset(name string) (preset, error) {
	text, _ := PresetFile(name)
	d := newDecoder("preset "+name, text, nil)
	var p preset
	if root, ok := d.parse(); ok {
		d.decode(root, valueOf(&p), "", "")
		d.entities(&p.Entities)
		d.events(&Billhook{Entities: p.Entities, Events: p.Events})
	}
	return p, d.err()
}
