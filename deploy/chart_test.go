package deploy_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/billhook/billhook/config"
)

const chartFolder = "helm/billhook"

func load(t *testing.T, folder string) *chart.Chart {
	t.Helper()
	c, err := loader.LoadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// render is what `helm template` prints of a chart.
func render(c *chart.Chart, release string, values string) (map[string]string, error) {
	given, err := chartutil.ReadValues([]byte(values))
	if err != nil {
		return nil, err
	}
	if err := chartutil.ProcessDependencies(c, given); err != nil {
		return nil, err
	}
	all, err := chartutil.ToRenderValues(c, given, chartutil.ReleaseOptions{Name: release, Namespace: "billing", Revision: 1, IsInstall: true}, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Engine{Strict: true}.Render(c, all)
}

// manifests are the documents of a rendered chart, in the order of their files.
func manifests(rendered map[string]string) []string {
	var names []string
	for name := range rendered {
		if strings.HasSuffix(name, ".yaml") {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(path.Base(a)+a, path.Base(b)+b) })
	var out []string
	for _, name := range names {
		if text := strings.TrimSpace(rendered[name]); text != "" {
			out = append(out, text+"\n")
		}
	}
	return out
}

// strict decodes a document as the Kubernetes API does, and refuses what its type does
// not have. Those of the Prometheus operator are no part of Kubernetes.
func strict(t *testing.T, doc string) {
	t.Helper()
	var kind struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct{ Name string }
	}
	if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	if kind.Metadata.Name == "" {
		t.Errorf("no name:\n%s", doc)
	}
	if kind.APIVersion == "monitoring.coreos.com/v1" {
		return
	}
	s := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, json.SerializerOptions{Yaml: true, Strict: true})
	if _, _, err := s.Decode([]byte(doc), nil, nil); err != nil {
		t.Errorf("%s %s: %v\n%s", kind.Kind, kind.Metadata.Name, err, doc)
	}
}

// helmsOwn are labels that say that Helm looks after an object.
var helmsOwn = regexp.MustCompile(`(?m)^ *(app.kubernetes.io/managed-by|helm.sh/chart|helm.sh/resource-policy): .*\n`)

// compare holds the documents of a chart to a file of plain manifests.
func compare(t *testing.T, file, got string) {
	t.Helper()
	got = helmsOwn.ReplaceAllString(got, "")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := string(read(t, file)); got != want {
		t.Errorf("%s is not what the chart says: run go test . -update in deploy\n%s", file, got)
	}
}

func TestChartLint(t *testing.T) {
	for _, folder := range []string{chartFolder} {
		l := lint.AllWithKubeVersion(folder, nil, "billing", nil)
		for _, m := range l.Messages {
			if m.Severity > support.InfoSev {
				t.Error(m)
			}
		}
		if l.HighestSeverity > support.InfoSev {
			t.Errorf("severity %d", l.HighestSeverity)
		}
	}
	if !bytes.Equal(read(t, chartFolder+"/files/alerts.yaml"), read(t, "prometheus/alerts.yaml")) {
		if !*update {
			t.Errorf("the chart has other alerts than prometheus/alerts.yaml: run go test . -update in deploy")
		} else if err := os.WriteFile(chartFolder+"/files/alerts.yaml", read(t, "prometheus/alerts.yaml"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const everything = `
image: {repository: registry.example.net/billhook, digest: "sha256:0123456789012345678901234567890123456789012345678901234567890123"}
imagePullSecrets: [{name: registry}]
extraEnv: [{name: CRM_SECRET, valueFrom: {secretKeyRef: {name: crm, key: secret}}}]
persistence: {storageClass: fast, size: 20Gi, annotations: {backup: "yes"}}
extraVolumes: [{name: plugins, emptyDir: {}}]
extraVolumeMounts: [{name: plugins, mountPath: /plugins, readOnly: true}]
service: {annotations: {a: b}}
serviceMonitor: {enabled: true, labels: {release: prometheus}}
prometheusRule: {enabled: true, labels: {release: prometheus}}
networkPolicy: {enabled: true, from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]}
podAnnotations: {c: d}
podLabels: {e: f}
nodeSelector: {disk: ssd}
tolerations: [{key: k, operator: Exists}]
affinity: {nodeAffinity: {}}
priorityClassName: system-cluster-critical
handlers:
  version: 1
  handlers: [{id: 1, name: CRM, event: clients.create, http: {url: "https://crm.example.net/client-add", secret_env: CRM_SECRET}}]
`

// TestChart renders the chart in its forms. Two of them are the plain manifests.
func TestChart(t *testing.T) {
	for _, c := range []struct{ name, release, values, golden string }{
		{"standalone", "billhook", "", "kubernetes/standalone.yaml"},
		{"everything", "prod", everything, ""},
		{"claim", "prod", `persistence: {existingClaim: journals}`, ""},
		{"forgetful", "prod", `persistence: {enabled: false}`, ""},
		{"own files", "prod", `existingConfigMap: files
existingSecret: ""
serviceAccount: {create: false}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			rendered, err := render(load(t, chartFolder), c.release, c.values)
			if err != nil {
				t.Fatal(err)
			}
			docs := manifests(rendered)
			for _, doc := range docs {
				strict(t, doc)
			}
			if text := strings.Join(docs, "---\n"); c.golden != "" {
				compare(t, c.golden, "# Made of the chart in ../helm/billhook, with its default values.\n"+text)
			}
			if notes := rendered["billhook/templates/NOTES.txt"]; !strings.Contains(notes, "billhook check") {
				t.Errorf("notes:\n%s", notes)
			}
			understood(t, docs)
		})
	}
}

// TestSidecar renders a chart that depends on this one.
func TestSidecar(t *testing.T) {
	parent := load(t, "helm/sidecar-example")
	parent.AddDependency(load(t, chartFolder))
	rendered, err := render(parent, "billing", "")
	if err != nil {
		t.Fatal(err)
	}
	docs := manifests(rendered)
	for _, doc := range docs {
		strict(t, doc)
	}
	text := strings.Join(docs, "---\n")
	compare(t, "kubernetes/sidecar.yaml", "# Made of the chart in ../helm/sidecar-example: Billhook beside a container of your own.\n"+text)
	if strings.Contains(text, "kind: StatefulSet") || !strings.Contains(text, "kind: PersistentVolumeClaim") {
		t.Error(text)
	}
	understood(t, docs)
}

// understood has Billhook read the files of a ConfigMap.
func understood(t *testing.T, docs []string) {
	t.Helper()
	env := func(string) (string, bool) { return "host=localhost password=0123456789abcdef", true }
	for _, doc := range docs {
		var m struct {
			Kind string
			Data map[string]string
		}
		if err := yaml.Unmarshal([]byte(doc), &m); err != nil {
			t.Fatal(err)
		}
		if m.Kind != "ConfigMap" {
			continue
		}
		b, err := config.ParseBillhook("billhook.yaml", []byte(m.Data["billhook.yaml"]), env)
		if err != nil {
			t.Fatal(err)
		}
		h := strings.ReplaceAll(m.Data["handlers.yaml"], "secret_env: CRM_SECRET", "secret: whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz")
		if _, err := config.ParseHandlers("handlers.yaml", []byte(h), env, b); err != nil {
			t.Fatal(err)
		}
	}
}

// TestChartRefuses: values with a mistake are refused, by name.
func TestChartRefuses(t *testing.T) {
	for values, want := range map[string]string{
		"mode: alone":                  "mode",
		"persistance: {enabled: true}": "persistance",
		"config: {version: null}":      "version",
		"service: {port: 0}":           "port",
		"image: {digest: sha256:1}":    "digest",
	} {
		if _, err := render(load(t, chartFolder), "billhook", values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", values, err)
		}
	}
}

// TestManifests: every other file of the folder, by Kubernetes' own types.
func TestManifests(t *testing.T) {
	names, err := filepath.Glob("kubernetes/*.yaml")
	if err != nil || len(names) < 3 {
		t.Fatalf("%v: %v", names, err)
	}
	for _, name := range names {
		d := yaml.NewDecoder(bytes.NewReader(read(t, name)))
		for n := 0; ; n++ {
			var doc map[string]any
			if err := d.Decode(&doc); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			b, err := yaml.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			t.Run(fmt.Sprintf("%s %d", name, n), func(t *testing.T) { strict(t, string(b)) })
		}
	}
}
