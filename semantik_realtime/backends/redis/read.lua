-- Read a topic atomically: the events after a cursor, or the states with the reason. Begins with
-- entries.lua.
--
-- KEYS  meta log state
-- ARGV  epoch offset chain of the cursor (epoch "-": none), history, limit of a replay, most bytes
--       of the events
-- Return {} for an unknown topic, {'deleted'} while a deleted one refuses late drafts, else
--        {epoch, offset, chain, owner, reason ('': a replay), {event, "ID CHAIN", …},
--        {key, event, …}}
-- The rule is that of plan_sync() in core/resume.py; the contract suite tests both.
local meta, log, state = KEYS[1], KEYS[2], KEYS[3]
local position = read_any('HMGET', meta, 'epoch', 'offset', 'chain', 'owner', 'deleted')
if position[5] then return {'deleted'} end
local epoch, offset, chain = position[1], whole(position[2]), whole(position[3])
if not epoch or not offset or not chain or offset == 0 then return {} end
local asked_epoch, asked = ARGV[1], tonumber(ARGV[2])

local function chain_at(place)
  if place == offset then return string.format('%08x', chain) end
  if place == 0 then return '00000000' end
  local entry = read_any('XRANGE', log, ARGV[2] .. '-0', ARGV[2] .. '-0')[1]
  if not entry then return nil end
  local _, there = entry_of_append(entry)
  return there
end

local oldest = read_any('XRANGE', log, '-', '+', 'COUNT', 1)[1]
local first = oldest and tonumber(string.match(oldest[1], '^%d+')) or offset + 1
local reason = ''
if asked_epoch == '-' then
  reason = 'new'
elseif asked_epoch ~= epoch then
  reason = 'epoch'
elseif asked > offset then
  reason = 'ahead'
elseif asked < first - 1 then
  reason = 'trimmed'
elseif offset - asked > tonumber(ARGV[5]) then
  reason = 'too_far'
else
  local there = chain_at(asked)
  if not there then
    reason = 'trimmed'
  elseif there ~= ARGV[3] then
    reason = 'diverged'
  end
end

local most = tonumber(ARGV[6])
local events, states = {}, {}
if reason == '' and asked < offset then
  events = read_events('XRANGE', log, asked + 1, offset, offset - asked, most)
  -- The rule of check_replay() in core/resume.py: cut to the bytes that an answer may have, or an
  -- entry was deleted.
  local count = #events / 2
  if count < offset - asked then
    local reached = count > 0 and tonumber(string.match(events[#events], '^%d+')) or asked
    reason = reached - asked == count and 'too_far' or 'trimmed'
  end
end
if reason ~= '' then
  states = read_any('HGETALL', state)
  local newest = read_events('XREVRANGE', log, offset, 0, tonumber(ARGV[4]), most)
  events = {}
  for i = #newest - 1, 1, -2 do
    events[#events + 1] = newest[i]
    events[#events + 1] = newest[i + 1]
  end
end
return {epoch, string.format('%d', offset), string.format('%08x', chain),
  position[4] or '', reason, events, states}
